"""Launchers, recognized by their environment variables, and the cores of each rank."""

import pytest

from xbp import launchers
from xbp.launchers import Launched, launched

MPICH = {"PMI_RANK": "1", "PMI_SIZE": "4", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}
BATCH = {"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_LOCALID": "0"}
STEP = BATCH | {"SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_TASKS_PER_NODE": "2(x2)"}
TORCHRUN = {"RANK": "2", "WORLD_SIZE": "4", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        (MPICH, Launched("MPICH", 1, 4, 1, 2)),
        (OPEN_MPI, Launched("Open MPI", 3, 4, 1, 2)),
        (STEP, Launched("Slurm", 0, 4, 0, 2)),
        (BATCH, None),  # the script of a job is one process
        (TORCHRUN, Launched("torchrun", 2, 4, 0, 2)),
        (STEP | MPICH, Launched("MPICH", 1, 4, 1, 2)),
        (MPICH | {"PMI_SIZE": "1"}, None),
        (MPICH | {"PMI_SIZE": "many"}, None),
        ({"RANK": "1", "WORLD_SIZE": "2"}, Launched("torchrun", 1, 2, 0, 1)),
    ],
)
def test_launchers_are_known_by_their_variables(
    environment: dict[str, str], expected: Launched | None
) -> None:
    assert launched(environment) == expected


def test_each_rank_has_its_share_of_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launchers, "cores", lambda: 16)
    for name in launchers.THREADS:
        monkeypatch.delenv(name, raising=False)
    assert launchers.share_of_cores(4) == dict.fromkeys(launchers.THREADS, "4")
    assert launchers.share_of_cores(32)["XBP_NUM_THREADS"] == "1"
    monkeypatch.setenv("XBP_NUM_THREADS", "3")
    assert "XBP_NUM_THREADS" not in launchers.share_of_cores(4)
    monkeypatch.setenv("OMP_NUM_THREADS", "5")  # followed by xbp and OpenBLAS too
    assert launchers.share_of_cores(4) == {}
