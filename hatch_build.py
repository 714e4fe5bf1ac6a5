"""Build hook: with OUROBOROS_BUILD_KERNELS=1 the wheel carries the C++ kernels compiled ahead and is one for this
platform, for any Python. Without it, or on machines that there are no kernels for, the wheel is the same everywhere and
no compiler is needed."""

from __future__ import annotations

import importlib.util
import os
import platform
import sys
import sysconfig
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SWITCH = "OUROBOROS_BUILD_KERNELS"


class KernelsHook(BuildHookInterface):  # type: ignore[type-arg]
    """Compiles into a directory of its own; nothing is left among the sources."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if not _asked() or version == "editable":
            return
        building = _building(Path(self.root))
        names = building.variants(sys.platform, platform.machine())
        if not names:
            self.app.display_warning(f"no kernels for {sys.platform} on {platform.machine()}: a wheel without them")
            return
        self._folder = tempfile.TemporaryDirectory()
        for name in names:
            inside = building.built_file(name)
            file = Path(self._folder.name) / Path(inside).name
            building.compile_ahead(building.find_compiler(), file, name)
            build_data["force_include"][str(file)] = f"ouroboros/kernels/{inside}"
        tag = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["tag"], build_data["pure_python"] = f"py3-none-{tag}", False

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        if folder := getattr(self, "_folder", None):
            folder.cleanup()


def _asked() -> bool:
    value = os.environ.get(SWITCH, "0")
    if value not in ("0", "1"):
        raise ValueError(f"{SWITCH} must be 0 or 1, not {value!r}")
    return value == "1"


def _building(root: Path) -> ModuleType:
    """The module of that name: it needs nothing installed."""
    spec = importlib.util.spec_from_file_location("building", root / "src/ouroboros/kernels/building.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
