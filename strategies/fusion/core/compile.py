"""Compiles the fuser's core for the Python that runs this, with the system's C compiler, or CC (CFLAGS and LDFLAGS are passed on).

    python strategies/fusion/core/compile.py             into the package, where Python finds it
    python strategies/fusion/core/compile.py --check     only see whether it compiles without a warning

Needs nothing but the standard library, for it runs where the gateway is being installed. Without a compiler, or without Python's headers,
nothing is lost but speed: the fuser then runs in Python.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

SOURCES = Path(__file__).resolve().parent
NAME = f"_core{sysconfig.get_config_var('EXT_SUFFIX')}"
FLAGS = ("-std=c11", "-O3", "-fPIC", "-fvisibility=hidden")
EXACT = ("-ffp-contract=off", "-fno-fast-math")
"""Sums and products are rounded one by one, as Python rounds them, on every processor."""


STRICT = ("-Wall", "-Wextra", "-Werror")
"""For whoever works on it; a stranger's compiler may warn of what ours does not know."""


class NotCompiled(Exception):
    """The message says why."""


class NoCompiler(NotCompiled):
    """Nothing was tried."""


def compile_core(into: Path, *extra: str) -> Path:
    """The extension module, made in a directory. Raises NotCompiled."""
    compiler = _compiler()
    target = into / NAME
    made = into / f"{NAME}.{os.getpid()}"  # then renamed: whoever runs the earlier one keeps it
    link = ("-bundle", "-undefined", "dynamic_lookup") if sys.platform == "darwin" else ("-shared",)
    command = [
        *compiler,
        *FLAGS,
        *_words("CFLAGS"),
        *EXACT,
        *extra,
        f'-DSOURCES="{_digest()}"',
        *(f"-I{sysconfig.get_path(which)}" for which in ("include", "platinclude")),
        *sorted(str(path) for path in SOURCES.glob("*.c")),
        *link,
        *_words("LDFLAGS"),
        "-o",
        str(made),
        "-lm",
    ]
    try:
        done = subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", timeout=300, check=False
        )
        if done.returncode:
            raise NotCompiled(_first_error(done.stderr) or f"{compiler[0]} failed")
        made.replace(target)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotCompiled(str(error)) from error
    finally:
        with suppress(OSError):  # a file system that is only read raises even where there is nothing
            made.unlink()
    return target


def _words(variable: str) -> list[str]:
    """What an environment variable has for the command. Raises NotCompiled."""
    try:
        words = shlex.split(os.environ.get(variable, ""))
    except ValueError as error:
        raise NotCompiled(f"{variable}: {error}") from error
    # -Ofast would link what flushes the denormals of the whole process.
    return ["-O3" if word == "-Ofast" else word for word in words]


def _digest() -> str:
    """Of the sources: strategies.fusion.native compares it."""
    return hashlib.sha256(b"".join([path.read_bytes() for path in sorted(SOURCES.glob("*.[ch]"))])).hexdigest()


def _compiler() -> list[str]:
    if sys.platform == "win32":
        raise NoCompiler("it is not built on Windows")
    asked = os.environ.get("CC")
    usual = sysconfig.get_config_var("CC") or "", "cc", "gcc", "clang"
    for command in [_words("CC")] if asked else map(shlex.split, usual):
        if command and shutil.which(command[0]):
            return command
    raise NoCompiler(f"there is no C compiler {asked!r}" if asked else "there is no C compiler")


def _first_error(said: str) -> str:
    lines = said.splitlines()
    return next((line.strip() for line in lines if "error:" in line), lines[-1].strip() if lines else "")


def main() -> int:
    """Into the package; that it can't be had is no failure. --check: nowhere, and every warning is one (of a compiler that is there)."""
    try:
        if sys.argv[1:] == ["--check"]:
            with TemporaryDirectory() as nowhere:
                compile_core(Path(nowhere), *STRICT)
        else:
            compile_core(SOURCES.parent)
    except NoCompiler as why:
        sys.stderr.write(f"the fuser's core is not compiled, and runs in Python, some five times slower: {why}\n")
    except NotCompiled as why:
        sys.stderr.write(f"the fuser's core does not compile, and runs in Python, some five times slower: {why}\n")
        return int(sys.argv[1:] == ["--check"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
