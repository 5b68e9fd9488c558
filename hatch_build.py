"""Compiles the accelerators' kernels into the wheel, where there is a compiler to do it.

Without one, or with ``XBP_PURE=1``, the wheel is pure Python, and xbp runs as its references say.
"""

from __future__ import annotations

import os
import platform
import runpy
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class KernelsHook(BuildHookInterface):  # type: ignore[type-arg]
    """Runs ``xbp/accelerators/cpu/build.py``."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if os.environ.get("XBP_PURE") == "1":
            return
        script = Path(self.root) / "xbp" / "accelerators" / "cpu" / "build.py"
        libraries = runpy.run_path(str(script))["build"]()
        if not libraries:
            self.app.display_warning("no C compiler: xbp is installed without its accelerators")
            return
        build_data["artifacts"] += [f"/xbp/accelerators/cpu/{path.name}" for path in libraries]
        build_data["pure_python"] = False
        # The compiler compiles for this processor, though a Python may be for two.
        system = sysconfig.get_platform().replace("universal2", platform.machine())
        name = system.replace("-", "_").replace(".", "_")
        build_data["tag"] = f"py3-none-{name}"  # loaded by ctypes: any Python will do
