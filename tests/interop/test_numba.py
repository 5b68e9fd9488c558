"""A function that Numba compiles, as a layer under both checks; skipped without Numba.

`tests/backend/test_foreign.py` has its arrays.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xbp import nn
from xbp.testing import check_gradients, check_parity

pytest.importorskip("numba")
PAGE = Path(__file__).parents[2] / "docs" / "guides" / "own_kernels.md"
X = np.random.default_rng(0).normal(size=(4, 3))


def run(code: str) -> dict[str, Any]:
    names = {"nn": nn, "x": X, "check_gradients": check_gradients, "check_parity": check_parity}
    exec(compile(code, str(PAGE), "exec"), names)
    return names


@pytest.fixture
def block() -> str:
    section = PAGE.read_text(encoding="utf-8").partition("\n## Numba\n")[2]
    found = re.search(r"```python\n(.*?)```", section, re.DOTALL)
    assert found is not None
    return found[1]


def test_the_block_of_the_guide_passes_both_checks(block: str) -> None:
    y, backward = run(block)["Cube"]().forward(X)
    np.testing.assert_allclose(y, X**3, rtol=1e-15)  # two roundings here, two there
    np.testing.assert_allclose(backward(np.ones_like(X)), 3 * X**2, rtol=1e-15)


def test_a_wrong_slope_is_found(block: str) -> None:
    assert "3 * x * x" in block
    with pytest.raises(AssertionError, match="Cube"):
        run(block.replace("3 * x * x", "2 * x * x"))


def test_another_dtype_is_found(block: str) -> None:
    """Compiled for float64 alone."""
    with pytest.raises(AssertionError, match="float64 in place of float32"):
        run(block.replace('"float32(float32)", ', ""))
