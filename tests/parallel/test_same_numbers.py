"""n ranks compute what one process computes with the same batches, and are equal bit for bit."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from parallel import shares
from parallel.started import needs_mpi, start

CLOSE = {"rtol": 1e-11, "atol": 1e-12}
"""Sums in another order differ by some 2⁻⁵³; 51 steps may magnify this ten thousand times."""


@cache
def alone(name: str) -> dict[str, Any]:
    return shares.train(name, None)


def check(name: str, ranks: list[dict[str, Any]]) -> None:
    expected = alone(name)
    assert len(expected["losses"]) == 51 and np.isfinite(expected["losses"]).all()
    for found in ranks:
        assert found.keys() == expected.keys()
        for key, value in found.items():
            np.testing.assert_allclose(value, expected[key], **CLOSE, err_msg=key)
            assert value.tobytes() == ranks[0][key].tobytes(), f"{key} differs between ranks"


@pytest.mark.parametrize(("name", "size"), shares.sizes_of(shares.CASES))
def test_threads(name: str, size: int) -> None:
    check(name, shares.by_threads(size, lambda group: shares.train(name, group)))


@needs_mpi
@pytest.mark.parametrize("size", shares.SIZES)
def test_processes(size: int, tmp_path: Path) -> None:
    names = ["dropout", "batch norm"]
    done = start(size, "-m", "mpi4py", shares.__file__, str(tmp_path), *names)
    assert done.returncode == 0, done.stderr
    for name in names:
        check(name, [dict(np.load(tmp_path / f"{name}_{rank}.npz")) for rank in range(size)])
