"""What is installed beside us: nothing runs at start that should not, and every dependency is locked with hashes."""

from __future__ import annotations

import re
import site
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

TREE = Path(__file__).parents[2]
LOCKED_EXTRAS = ("otel", "postgres", "shared")
HARMLESS = {
    # File → the only line with code that it may have.
    "distutils-precedence.pth": "import os; var = 'SETUPTOOLS_USE_DISTUTILS'; enabled = os.environ.get(var, 'local') == 'local'; "
    "enabled and __import__('_distutils_hack').add_shim(); ",
    "_virtualenv.pth": "import _virtualenv",
    "a1_coverage.pth": "import sys; exec('try: import coverage; coverage.process_startup()\\nexcept ImportError: pass')",
}


def startup_code(folder: Path) -> list[str]:
    """Lines of .pth files that run code at every start of Python, and are not known to be harmless; and modules that do."""
    found = []
    for file in sorted(folder.glob("*.pth")):
        for line in file.read_text("utf-8", errors="replace").splitlines():
            if line.startswith(("import ", "import\t")) and HARMLESS.get(file.name, "").strip() != line.strip():
                found.append(f"{file.name}: {line}")
    found += [name for name in ("sitecustomize.py", "usercustomize.py") if (folder / name).exists()]
    return found


def test_nothing_unexpected_runs_when_python_starts() -> None:
    assert [code for folder in site.getsitepackages() for code in startup_code(Path(folder))] == []


def test_such_code_would_be_found(tmp_path: Path) -> None:
    (tmp_path / "evil.pth").write_text("import os; os.system('true')\n")
    (tmp_path / "distutils-precedence.pth").write_text("import something_else\n")
    (tmp_path / "plain.pth").write_text("/some/folder\n# import in a comment\n")
    (tmp_path / "sitecustomize.py").write_text("")
    assert [line.split(":")[0] for line in startup_code(tmp_path)] == [
        "distutils-precedence.pth",
        "evil.pth",
        "sitecustomize.py",
    ]


def test_starting_imports_no_library_that_is_not_ours_to_start(tmp_path: Path) -> None:
    """In a process of its own: no customisation module is there."""
    code = "import sys; print([n for n in ('sitecustomize', 'usercustomize') if n in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


def locked() -> dict[str, tuple[str, int]]:
    """Name → version and number of hashes."""
    found: dict[str, tuple[str, int]] = {}
    name = ""
    for line in (TREE / "requirements.lock").read_text().splitlines():
        if pinned := re.match(r"([a-z0-9._-]+)==([^ ;\\]+)", line):
            name = pinned[1]
            found[name] = pinned[2], 0
        elif re.fullmatch(r"    --hash=sha256:[0-9a-f]{64}( \\)?", line):
            found[name] = found[name][0], found[name][1] + 1
        else:
            assert not line or line.startswith("#"), line
    return found


def test_every_dependency_is_locked_with_hashes_and_fits_what_we_ask_for() -> None:
    project = tomllib.loads((TREE / "pyproject.toml").read_text())["project"]
    wanted = [
        *project["dependencies"],
        *(line for extra in LOCKED_EXTRAS for line in project["optional-dependencies"][extra]),
    ]
    lock = locked()
    assert len(lock) > 40 and all(count for _, count in lock.values())
    for requirement in map(Requirement, wanted):
        version, _ = lock[requirement.name.lower().replace("_", "-")]
        assert Version(version) in requirement.specifier, requirement


def test_the_lock_names_no_place() -> None:
    assert not re.search(r"https?://|file:|index-url|find-links", (TREE / "requirements.lock").read_text())


@pytest.mark.parametrize("command", ["serve", "top", "keys create", "eval run", "bench", "demo"])
def test_no_command_takes_a_secret_as_an_argument(command: str) -> None:
    """What stands on a command line can be read by everyone on the machine."""
    from typer.testing import CliRunner

    from gateway.cli.commands import app

    text = CliRunner().invoke(app, [*command.split(), "--help"]).output
    assert not re.search(r"--(api-?key|key|token|secret|password)(?![\w-])", text), text
