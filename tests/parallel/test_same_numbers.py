"""n ranks compute what one process computes with the same batches, and are equal bit for bit."""

import os
import subprocess
import sys
from functools import cache
from importlib import metadata, util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from parallel import shares
from processes import search_path

SIZES = [1, 2, 3, 5]
CLOSE = {"rtol": 1e-11, "atol": 1e-12}
"""Sums in another order differ by some 2⁻⁵³, which 51 steps may make ten thousand times larger."""


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


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", shares.CASES)
def test_threads(name: str, size: int) -> None:
    check(name, shares.by_threads(size, lambda group: shares.train(name, group)))


def of_mpich(name: str) -> str | None:
    """A file of MPICH's wheel."""
    try:
        files = metadata.files("mpich") or []
    except metadata.PackageNotFoundError:
        return None
    return next((str(file.locate()) for file in files if file.name == name), None)


@pytest.mark.skipif(
    util.find_spec("mpi4py") is None or of_mpich("mpiexec.hydra") is None,
    reason='mpi4py and mpich are not installed; pip install ".[mpi]"',
)
@pytest.mark.parametrize("size", SIZES)
def test_processes(size: int, tmp_path: Path) -> None:
    names = ["dropout", "batch norm"]
    settings = dict.fromkeys(("XBP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"), "1")
    settings["PYTHONPATH"] = search_path(Path(shares.__file__).parents[1])
    library = of_mpich("libmpi.so.12")
    if library is not None:  # which mpi4py does not find if another environment lends its packages
        settings["MPI4PY_LIBMPI"] = library
    launch = [str(of_mpich("mpiexec.hydra")), "-n", str(size)]
    done = subprocess.run(
        [*launch, sys.executable, "-m", "mpi4py", shares.__file__, str(tmp_path), *names],
        env=os.environ | settings,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for name in names:
        check(name, [dict(np.load(tmp_path / f"{name}_{rank}.npz")) for rank in range(size)])
