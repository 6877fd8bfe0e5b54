"""Every line of what a true drop-in does has a test in this suite that names its number."""

from __future__ import annotations

import ast
import re
from pathlib import Path

HERE = Path(__file__).parent
ELSEWHERE = {16: "test_completions.py", 35: "test_embeddings.py", 36: "test_openai_client.py"}
"""Lines about other endpoints and other clients → where their tests begin."""


def named(file: Path) -> set[int]:
    """The numbers in the docstrings of a file's tests."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    tests = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
    ]
    found = [re.match(r"drop-in ([\d, ]+)", ast.get_docstring(test) or "") for test in tests]
    return {int(number) for match in found if match for number in match[1].replace(",", " ").split()}


def test_no_line_is_forgotten() -> None:
    for number, file in ELSEWHERE.items():
        assert number in named(HERE.parent / file)
    covered = set().union(*(named(file) for file in HERE.glob("test_*.py")))
    assert covered | ELSEWHERE.keys() == set(range(1, 37))
