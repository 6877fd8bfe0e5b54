"""The guide for lm-evaluation-harness, done as it says: its task over its command, against a gateway of fake models.

The harness lives in an environment of its own: LM_EVAL names its `lm_eval` program; without that this is skipped.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "guides" / "lm-eval.md"
CONFIG = """\
models:
  qwen: {backend: fake, answer: "It is 5.\\n#### 5"}
  smol: {backend: fake, answer: "It is four.\\n#### 4", seed: 2}
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_guide(tmp_path: Path) -> None:
    program = os.environ.get("LM_EVAL")
    if not program:
        pytest.skip("LM_EVAL does not name the harness' program")
    guide = GUIDE.read_text(encoding="utf-8")
    (tmp_path / "sums").mkdir()
    (tmp_path / "sums" / "sums.yaml").write_text(
        re.findall(r"```yaml\n(.*?)```", guide, re.DOTALL)[-1], encoding="utf-8"
    )
    (tmp_path / "sums" / "questions.jsonl").write_text(
        '{"question": "2 + 2?", "answer": "4"}\n{"question": "2 + 3?", "answer": "5"}\n'
    )
    (tmp_path / "c.yaml").write_text(CONFIG, encoding="utf-8")
    command = re.findall(r"lm_eval (run .*?)\n```", guide, re.DOTALL)[-1].replace("\\\n", " ")
    log = tmp_path / "gateway.log"
    with log.open("w") as out:
        server = subprocess.Popen(
            [sys.executable, "-m", "gateway", "serve", "-c", str(tmp_path / "c.yaml"), "--port", "0"], stderr=out
        )
    try:
        for _ in range(300):
            if found := re.search(r"serving on (http\S+)", log.read_text(encoding="utf-8")):
                break
            time.sleep(0.1)
        else:
            pytest.fail(log.read_text(encoding="utf-8"))
        asked = command.replace("http://127.0.0.1:8000/v1", found[1])
        environment = {**os.environ, "OPENAI_API_KEY": "unused", "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
        done = subprocess.run(
            ["bash", "-c", f'"{program}" {asked}'],  # noqa: S607 - the guide's own line, as a reader would type it
            cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200, check=False,
        )  # fmt: skip
    finally:
        server.terminate()
        server.wait(20)
    assert done.returncode == 0, done.stderr[-2000:]
    assert re.search(r"\|sums .*exact_match\|[^|]*\|\s*0\.5\|", done.stdout), done.stdout
