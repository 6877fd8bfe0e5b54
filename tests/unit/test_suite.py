"""The suite itself can be collected as a whole, also where only a part of it is run."""

from collections import Counter
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]


def test_no_two_files_of_tests_share_a_name() -> None:
    """Folders of tests are no packages: pytest imports a file by its bare name, and ends the whole run at the second of a name."""
    names = Counter(path.name for path in TESTS.rglob("test_*.py"))
    assert len(names) > 100
    assert [name for name, files in names.items() if files > 1] == []
