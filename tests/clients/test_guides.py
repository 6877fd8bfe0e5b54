"""The programs in `docs/guides` run, in the environments of their clients, against scripted models of the names that they use."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from environments import Environment
from scripts import KEY, RULES, configuration, gateway

pytestmark = pytest.mark.clients
GUIDES = Path(__file__).resolve().parents[2] / "docs" / "guides"
CLIENTS = {
    "openai-python": "openai3",
    "openai-node": "openai_node",
    "langchain": "langchain",
    "agents-sdk": "agents",
    "pydantic-ai": "pydantic_ai",
    "instructor": "instructor",
    "llama-index": "llama_index",
    "autogen": "autogen",
    "llm": "llm",
    "vercel-ai-sdk": "vercel",
}
ELSEWHERE = {"lm-eval"}  # tests/e2e/test_lm_eval_guide.py


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with gateway(tmp_path_factory.mktemp("guides"), configuration(RULES, ["qwen", "smol", "gemma"])) as client:
        yield str(client.base_url).rstrip("/")


def test_every_guide_is_tried() -> None:
    assert {page.stem for page in GUIDES.glob("*.md")} == {*CLIENTS, *ELSEWHERE}


@pytest.mark.timeout(900)
@pytest.mark.parametrize("guide", CLIENTS)
def test_it_runs(guide: str, url: str, environment: Callable[[str], Environment], tmp_path: Path) -> None:
    client = environment(CLIENTS[guide])
    blocks = re.findall(r"^```(\w+)\n(.*?)^```", (GUIDES / f"{guide}.md").read_text("utf-8"), re.MULTILINE | re.DOTALL)
    programs = [(kind, text) for kind, text in blocks if kind in ("python", "js", "sh")]
    assert programs
    for kind, text in blocks:
        if kind == "yaml":  # of the llm command
            changed = text.replace("http://127.0.0.1:8000/v1", url)
            (tmp_path / "extra-openai-models.yaml").write_text(changed, encoding="utf-8")
            (tmp_path / "keys.json").write_text(f'{{"modelnet": "{KEY}"}}')
    path = f"{client.folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    variables = {"PATH": path, "OPENAI_BASE_URL": url, "OPENAI_API_KEY": KEY, "LLM_USER_PATH": str(tmp_path)}
    for kind, text in programs:
        file = tmp_path / f"program.{'mjs' if kind == 'js' else kind}"
        file.write_text(text, encoding="utf-8")
        if kind == "js":
            (tmp_path / "node_modules").symlink_to(client.folder / "node_modules")
        command = {"python": str(client.python), "js": shutil.which("node") or "node", "sh": "sh"}[kind]
        done = subprocess.run(
            [command, str(file)], cwd=tmp_path, env={"HOME": str(tmp_path), **variables},
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        assert "Hello from all of us. 是的 😀 naïve" in done.stdout or "Ada" in done.stdout, done.stdout
