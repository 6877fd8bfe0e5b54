"""Hatch's build hook: the compiled core goes into a wheel, or beside the source of an editable install, where it can be compiled."""

from __future__ import annotations

import runpy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PACKAGE = "strategies/fusion"


class CoreHook(BuildHookInterface):
    """See the module."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """version: "editable", or "standard" for a wheel to be handed on."""
        build = runpy.run_path(str(Path(__file__).with_name("compile.py")))
        package = Path(self.root, PACKAGE)
        self._made = TemporaryDirectory()
        try:
            made = build["compile_core"](package if version == "editable" else Path(self._made.name))
        except build["NotCompiled"] as why:
            self.app.display_warning(f"the fuser's core is not compiled, and runs in Python: {why}")
            return
        if version != "editable":
            build_data["pure_python"] = False
            build_data["infer_tag"] = True
            build_data["force_include"][str(made)] = f"{PACKAGE}/{made.name}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """The wheel is written."""
        self._made.cleanup()
