"""The parts of xbp that run on JAX, whose arrays are immutable, and the obstacles for the others.

    pip install jax && PYTHONPATH=.:tests python tests/jax_survey.py

JAX is not a backend of xbp (docs/backends.md says why). This script makes it one while it runs, and
compares every case of the test table and every optimizer with numpy. It is not a test.
"""

from __future__ import annotations

import importlib
import re
import traceback
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

import xbp.backend
from xbp.testing import check_parity


class JAX(xbp.backend.Library):
    name, module, root = "jax", "jax.numpy", "jaxlib"
    install = "pip install jax"

    def device(self, device: Any) -> Any:
        return importlib.import_module("jax").devices(device or "cpu")[0]

    def place(self, xp: Any, array: Any, device: Any) -> Any:
        return importlib.import_module("jax").device_put(array, device)


def reason(error: BaseException) -> str:
    """The line of xbp that failed; `check_parity` names its file and number in its message."""
    said = re.search(r"\((\w+\.py), line (\d+)\)", str(error))
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "/xbp/" in f.filename]
    if said:
        places = Path(str(xbp.__file__)).parent.glob(f"[np]*/{said[1]}")  # nn, primitives
        lines = {p: p.read_text(encoding="utf-8").splitlines() for p in places}
        return ", ".join(f"{p.name}: {lines[p][int(said[2]) - 1].strip()}" for p in lines)
    if frames:
        return f"{Path(frames[-1].filename).name}: {frames[-1].line}"
    return str(error).strip().splitlines()[0]


def survey() -> None:
    from nn.cases import CASES
    from optim.rules import assert_close, problem, trained

    from xbp.testing.cases import RULES

    importlib.import_module("jax").config.update("jax_enable_x64", True)  # else float64 is float32
    xbp.backend.LIBRARIES["jax"] = xbp.backend.libraries._LIBRARY_OF_ROOT["jaxlib"] = JAX()
    xbp.backend.libraries._ARRAYS = (*xbp.backend.libraries._ARRAYS, "ArrayImpl")
    start, gradients = problem()

    def step(rule: Any) -> None:
        found = trained(rule, start, gradients[:20], "jax")
        assert not np.array_equal(found, start), "the parameter has not moved, without an error"
        assert_close(found, trained(rule, start, gradients[:20]), 1e-13)

    checks = {
        "layers and losses": [
            (str(c), lambda c=c: check_parity(c.make, *c.inputs(), backends=["jax"])) for c in CASES
        ],
        "optimizers": [(str(rule), lambda rule=rule: step(rule)) for rule in RULES],
    }
    for title, rows in checks.items():
        failed: dict[str, list[str]] = defaultdict(list)
        for name, check in rows:
            try:
                check()
            except Exception as error:
                failed[reason(error)].append(name)
        right = len(rows) - sum(map(len, failed.values()))
        print(f"{title}: {right} of {len(rows)} as on numpy")  # noqa: T201
        for why, names in failed.items():
            print(f"  {why}\n    {', '.join(names)}")  # noqa: T201


if __name__ == "__main__":
    survey()
