"""Strict YAML configuration: read, checked, and wrong with a file, a line and a key.

`source` turns a file into values and remembers where each is written; `schema` says what they may be; `check` holds the rules
between them; `load` joins the three.
"""

from gateway.settings.check import host_problem
from gateway.settings.errors import Problem, SettingsError
from gateway.settings.load import Loaded, load
from gateway.settings.paths import config_dir
from gateway.settings.schema import Settings

__all__ = ["Loaded", "Problem", "Settings", "SettingsError", "config_dir", "host_problem", "load"]
