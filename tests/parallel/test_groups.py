"""Groups: invalid arguments, and the calls of NCCL, recorded by a stand-in without a GPU."""

# ruff: noqa: N802 - the names of MPI and NCCL

import copy
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from parallel.shares import by_threads

import xbp
from xbp import nn, parallel
from xbp.accelerators.cuda import nccl
from xbp.backend import find_backend, graph_for, why_unavailable
from xbp.errors import BackendError, InputError, RankError
from xbp.parallel.mpi import MPIGroup, on_the_host, unlink_memory
from xbp.parallel.nccl import NCCLGroup


def test_a_group_of_one_changes_nothing() -> None:
    alone, array = parallel.group(), np.arange(3.0)
    alone.sum_(array)
    alone.broadcast_(array)
    alone.barrier()
    assert array.tolist() == [0.0, 1.0, 2.0]
    assert (alone.rank, alone.size, alone.local_rank, alone.local_size) == (0, 1, 0, 1)


def test_the_stand_in_is_a_group() -> None:
    def work(group: Any) -> Any:
        array = np.full(2, group.rank + 1.0)
        group.sum_(array)
        other = np.full(2, group.rank)
        group.broadcast_(other, root=1)
        return array.tolist() + other.tolist()

    assert by_threads(3, work) == [[6.0, 6.0, 1, 1]] * 3


def test_an_unknown_group_is_refused() -> None:
    with pytest.raises(InputError, match="group must be one of"):
        parallel.group("gloo")


@pytest.mark.parametrize("name", ["mpi", "nccl"])
def test_without_mpi_it_is_said_how_to_install_it(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    with pytest.raises(BackendError, match=r"processes need MPI, .*pip install \"xbackprop\[mpi\]"):
        parallel.group(name)


# --- MPI -----------------------------------------------------------------------------------------


def double(host: Any) -> None:
    assert type(host) is np.ndarray and host.flags.c_contiguous
    host *= 2


@pytest.mark.parametrize(
    "make",
    [
        lambda: np.arange(6.0),
        lambda: np.asarray(3.0),
        lambda: np.arange(12.0)[::2],
        lambda: np.ones((0, 3)),
        lambda: np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    ],
)
def test_arrays_of_numpy_are_changed_in_place(make: Any) -> None:
    array = make()
    on_the_host(array, double)
    assert array.tolist() == (2 * make()).tolist()


def test_arrays_of_a_device_travel_by_way_of_the_host() -> None:
    pytest.importorskip("array_api_strict")
    array = find_backend("array_api_strict", device="device1").asarray(np.arange(3.0))
    on_the_host(array, double)
    assert xbp.to_numpy(array).tolist() == [0.0, 2.0, 4.0]


@pytest.mark.parametrize("array", [3.0, np.float64(3), [1.0], np.array([True])])
def test_what_cannot_be_summed_in_place_is_refused(array: Any) -> None:
    with pytest.raises(InputError, match=r"a group (changes arrays in place|sums numbers)"):
        on_the_host(array, double)


class Communicator:
    """The communicator methods that `MPIGroup` uses, for a single rank."""

    def Get_rank(self) -> int:
        return 0

    def Get_size(self) -> int:
        return 1

    def Split_type(self, kind: Any) -> "Communicator":
        return self

    def Free(self) -> None: ...

    def Allreduce(self, how: Any, host: Any) -> None:
        host *= 2

    def Bcast(self, host: Any, root: int) -> None:
        host[...] = root

    def Barrier(self) -> None: ...

    def bcast(self, thing: Any, root: int) -> Any:
        return thing


@pytest.mark.parametrize(
    ("vendor", "left"),
    [(("MPICH", (5, 0, 2)), ["other"]), (("MPICH", (4, 3, 0)), ["mpich_shm_1_0", "other"])],
)
def test_mpichs_memory_is_unlinked_while_ranks_have_it_open(
    vendor: Any, left: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("mpich_shm_1_0", "other"):
        (tmp_path / name).write_bytes(b"")
    start = "7f00-7f01 rw-s 0000 00:1b 42    "
    lines = [f"{start}{tmp_path}/{name}" for name in ("mpich_shm_1_0", "mpich_shm_1_0", "other")]
    lines += [f"{start}{tmp_path}/mpich_shm_2_0 (deleted)", "7f02-7f03 r-xp 0000 00:00 0"]
    (tmp_path.parent / "maps").write_text("\n".join(lines))
    monkeypatch.setattr("xbp.parallel.mpi.MAPS", tmp_path.parent / "maps")
    unlink_memory(SimpleNamespace(get_vendor=lambda: vendor))
    assert sorted(path.name for path in tmp_path.iterdir()) == left
    monkeypatch.setattr("xbp.parallel.mpi.MAPS", tmp_path / "none")
    unlink_memory(SimpleNamespace(get_vendor=lambda: vendor))


class LostError(RuntimeError):
    """What MPI's calls raise when another rank was killed."""


@pytest.fixture
def mpi(monkeypatch: pytest.MonkeyPatch) -> MPIGroup:
    package = ModuleType("mpi4py")
    package.MPI = SimpleNamespace(  # type: ignore[attr-defined]
        COMM_WORLD=Communicator(), COMM_TYPE_SHARED=0, IN_PLACE=object(), Exception=LostError
    )
    monkeypatch.setitem(sys.modules, "mpi4py", package)
    made = parallel.group("mpi")
    assert isinstance(made, MPIGroup)
    return made


def test_a_group_of_mpi_asks_its_communicator(mpi: MPIGroup) -> None:
    array = np.ones(2)
    mpi.sum_(array)
    assert array.tolist() == [2.0, 2.0]
    mpi.broadcast_(array, root=3)
    assert array.tolist() == [3.0, 3.0]
    mpi.barrier()
    assert repr(mpi) == "MPIGroup(rank=0, size=1)"


def test_a_call_that_fails_says_where_the_rank_was(
    mpi: MPIGroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    def barrier() -> None:
        msg = "MPI_ERR_PROC_FAILED"
        raise LostError(msg)

    monkeypatch.setattr("xbp.parallel.mpi.LOST", 0.0)
    monkeypatch.setattr(mpi.communicator, "Barrier", barrier)
    mpi.count_step()
    sentence = "rank 0 was in a barrier, step 1, when MPI reported LostError: MPI_ERR_PROC_FAILED"
    with pytest.raises(RankError, match=sentence):
        mpi.barrier()


def test_one_of_several_processes_is_not_taken_for_one(
    mpi: MPIGroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if another MPI's mpiexec had started them."""
    monkeypatch.setenv("PMI_RANK", "1")
    monkeypatch.setenv("PMI_SIZE", "2")
    with pytest.raises(BackendError, match="MPICH has started 2 processes, and for mpi4py's MPI"):
        parallel.group("mpi")


def test_a_model_with_a_group_can_be_copied(mpi: MPIGroup) -> None:
    model = nn.Sequential(nn.BatchNorm1d(2))
    nn.pool_statistics(model, mpi)
    copied: Any = copy.deepcopy(model)
    assert copied[0] is not model[0] and copied[0].group is mpi
    nn.pool_statistics(copied, None)
    assert copied[0].group is None


# --- NCCL, by its calls alone --------------------------------------------------------------------


class OnGPU:
    """An array of a GPU, as NCCL's communicator sees it, made of numpy's."""

    def __init__(self, values: Any, device: int = 0) -> None:
        self.values, self.dtype, self.size, self.ndim = values, values.dtype, values.size, 1
        self.device, self.data = SimpleNamespace(id=device), SimpleNamespace(ptr=id(self))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A record of the calls of NCCL, without a GPU."""
    made: list[Any] = []
    nccl = ModuleType("cupy.cuda.nccl")
    current = [3]  # the caller's device, which is not that of the group

    def stream() -> Any:
        at = f"synchronize device {current[0]}"
        return SimpleNamespace(ptr=77 + current[0], synchronize=lambda: made.append(at))

    class NcclCommunicator:
        def __init__(self, *arguments: Any) -> None:
            made.extend([f"device {current[0]}", arguments])

        def allReduce(self, *arguments: Any) -> None:
            made.append(("allReduce", *arguments))

        def broadcast(self, *arguments: Any) -> None:
            made.append(("broadcast", *arguments))

    @contextmanager
    def device(number: int) -> Iterator[None]:
        before, current[0] = current[0], number
        yield
        current[0] = before

    known = {"NCCL_SUM": 0, "NCCL_INT64": 4, "NCCL_FLOAT32": 7, "NCCL_FLOAT64": 8}
    vars(nccl).update(
        available=True, get_unique_id=lambda: (1, 2), NcclCommunicator=NcclCommunicator, **known
    )
    cuda = ModuleType("cupy.cuda")
    vars(cuda).update(nccl=nccl, Device=device, get_current_stream=stream)
    cupy = ModuleType("cupy")
    vars(cupy).update(cuda=cuda, ndarray=OnGPU, ascontiguousarray=lambda array: array)
    for module in (cupy, cuda, nccl):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr("xbp.parallel.nccl.check_changeable", lambda array: None)
    return made


def test_nccl_sums_in_place_on_the_current_stream(mpi: MPIGroup, calls: list[Any]) -> None:
    group = parallel.group("nccl")
    assert isinstance(group, NCCLGroup) and group.size == 1
    assert calls == ["device 0", (1, (1, 2), 0)]
    for dtype, count, kind in (("float32", 5, 7), ("int64", 5, 4), ("complex128", 10, 8)):
        calls.clear()
        array: Any = OnGPU(np.zeros(5, dtype))
        group.sum_(array)
        group.broadcast_(array, root=1)
        at = array.data.ptr
        assert calls == [
            ("allReduce", at, at, count, kind, 0, 77),
            ("broadcast", at, at, count, kind, 1, 77),
        ]
    calls.clear()
    group.barrier()
    assert calls == ["synchronize device 0"]


def test_nccl_refuses_what_it_cannot_send(mpi: MPIGroup, calls: list[Any]) -> None:
    group = parallel.group("nccl")
    with pytest.raises(InputError, match="NCCL has no sum of int16"):
        group.sum_(OnGPU(np.zeros(5, "int16")))
    with pytest.raises(InputError, match="sends arrays of cupy's device 0, got one on"):
        group.sum_(OnGPU(np.zeros(5), device=1))


def test_numbers_on_the_host_travel_by_mpi(mpi: MPIGroup, calls: list[Any]) -> None:
    group, array = parallel.group("nccl"), np.ones(3)
    calls.clear()
    group.sum_(array)  # the one of these tests doubles
    assert array.tolist() == [2.0, 2.0, 2.0]
    group.broadcast_(array, root=1)
    assert array.tolist() == [1.0, 1.0, 1.0] and calls == []


def test_without_nccl_it_is_said_what_to_install(
    mpi: MPIGroup, calls: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["cupy.cuda.nccl"], "available", False)
    with pytest.raises(BackendError, match="CuPy finds no NCCL; install it"):
        parallel.group("nccl")
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(BackendError, match="NCCL needs CuPy"):
        parallel.group("nccl")


def test_one_rank_of_nccl_on_cupy() -> None:
    """A sum and a broadcast of one rank change nothing, eagerly and in a recorded step."""
    if reason := why_unavailable("cupy"):
        pytest.skip(reason)
    try:
        joined = nccl.Communicator(1, nccl.new_id(), 0, device=0)
    except BackendError as error:
        pytest.skip(str(error))
    with xbp.use_backend("cupy") as backend:
        x = backend.asarray(np.arange(12.0))

        def work() -> None:
            x[...] = x + 1.0
            joined.sum_(x[::2])
            joined.broadcast_(x, 0)

        work()
        graph = graph_for(x)
        graph.warm_up(work)
        graph.record(work)
        graph.replay()
        joined.synchronize()
        assert xbp.to_numpy(x).tolist() == [i + 3.0 for i in range(12)]
