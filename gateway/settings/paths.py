"""Where configuration files are found."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent.parent


def config_dir() -> Path:
    """The directory of the shipped configuration: inside an installed wheel `gateway/_config`, in a checkout `config`.

    Raises FileNotFoundError where neither exists (a broken installation).
    """
    for candidate in (_PACKAGE / "_config", _PACKAGE.parent / "config"):
        if candidate.is_dir():
            return candidate
    raise FileNotFoundError(f"no configuration directory beside {_PACKAGE}")
