"""Ranks of a test, started by MPICH's wheel."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import metadata, util
from pathlib import Path

import pytest
from processes import search_path


def of_mpich(name: str) -> str | None:
    """A file of MPICH's wheel."""
    try:
        files = metadata.files("mpich") or []
    except metadata.PackageNotFoundError:
        return None
    return next((str(file.locate()) for file in files if file.name == name), None)


needs_mpi = pytest.mark.skipif(
    util.find_spec("mpi4py") is None or of_mpich("mpiexec.hydra") is None,
    reason='mpi4py and mpich are not installed; pip install ".[mpi]"',
)


def environment(**others: str) -> dict[str, str]:
    """The environment of processes with one thread each, which find xbp, this folder and MPICH."""
    settings = dict.fromkeys(("XBP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"), "1")
    settings["PYTHONPATH"] = search_path(Path(__file__).parents[1])
    library, program = of_mpich("libmpi.so.12"), of_mpich("mpiexec.hydra")
    if library is not None:  # which mpi4py does not find in an environment with another's packages
        settings["MPI4PY_LIBMPI"] = library
    if program is not None:
        settings["PATH"] = os.pathsep.join([str(Path(program).parent), os.environ["PATH"]])
    return os.environ | settings | others


def start(size: int, *command: str, **others: str) -> subprocess.CompletedProcess[str]:
    """Run ``python …`` in `size` ranks."""
    return subprocess.run(
        [str(of_mpich("mpiexec.hydra")), "-n", str(size), sys.executable, *command],
        env=environment(**others),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
