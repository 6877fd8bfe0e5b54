"""Prompt sets: the built-in ones and those a configuration names."""

from __future__ import annotations

import re
from pathlib import Path

from gateway.settings.check import BUILT_IN_PROMPTS
from gateway.settings.errors import SettingsError
from gateway.settings.load import Loaded
from gateway.settings.paths import config_dir
from gateway.settings.source import read
from strategies.prompting import PromptSet

_AT = re.compile(r"(?P<key>[A-Za-z0-9_.]+): (?P<message>.*)", re.DOTALL)


def load_prompts(loaded: Loaded) -> dict[str, PromptSet]:
    """Name → prompt set. Raises SettingsError that names file, line and key."""
    files = {name: config_dir() / "prompts" / f"{name}.yaml" for name in BUILT_IN_PROMPTS}
    files |= {name: loaded.resolve(written) for name, written in loaded.settings.prompts.items()}
    return {name: _prompt_set(name, file) for name, file in files.items()}


def _prompt_set(name: str, file: Path) -> PromptSet:
    # Prompts are texts, not settings: a `${…}` in one is meant for the model.
    source = read(file, environ=None)
    try:
        return PromptSet.from_mapping(name, source.value)
    except ValueError as error:
        found = _AT.fullmatch(str(error))
        path, message = (tuple(found["key"].split(".")), found["message"]) if found else ((), str(error))
        raise SettingsError([source.problem(path, message)]) from None
