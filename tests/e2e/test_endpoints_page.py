"""The programs in docs/endpoints.md run, against scripted models of the names that they use."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from served import gateway, upstream

PAGE = Path(__file__).resolve().parents[2] / "docs" / "endpoints.md"
CONFIG = """
models:
  qwen: {{backend: fake, answer: "said by qwen"}}
  smol: {{backend: fake, answer: "said by smol"}}
  gemma: {{backend: fake, answer: "said by gemma"}}
  vectors: {{backend: openai, base_url: "{vectors}"}}
"""


def test_they_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    programs = re.findall(r"^```python\n(.*?)^```", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert len(programs) >= 4
    with upstream(tmp_path, "vectors") as vectors, gateway(tmp_path, CONFIG.format(vectors=vectors)) as client:
        monkeypatch.setenv("OPENAI_BASE_URL", str(client.base_url))
        monkeypatch.setenv("OPENAI_API_KEY", client.api_key)
        names: dict[str, object] = {}
        for program in programs:
            exec(compile(program, str(PAGE), "exec"), names)  # noqa: S102 - our own page
            assert capsys.readouterr().out.strip()
        names["client"].close()  # type: ignore[attr-defined]
