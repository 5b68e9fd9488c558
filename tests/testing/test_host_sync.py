"""Every way to wait for a device is found, nothing else is, and all patches are removed."""

from __future__ import annotations

import pickle
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import xbp
from xbp import nn
from xbp.errors import BackendError
from xbp.testing import HostSyncError, assert_no_host_sync, host_sync


def waits() -> Any:
    return pytest.raises(HostSyncError, match="waits for the device")


@pytest.fixture
def strict() -> Any:
    pytest.importorskip("array_api_strict")
    with xbp.use_backend("array_api_strict") as backend:
        yield backend


@pytest.mark.parametrize(
    "wait",
    [
        lambda xp, x: float(x[0]),
        lambda xp, x: int(x[0]),
        lambda xp, x: bool(x[0]),
        lambda xp, x: complex(x[0]),
        lambda xp, x: range(xp.astype(x, xp.int64)[1]),
        lambda xp, x: 1 if x[0] > 0 else 2,
        lambda xp, x: np.from_dlpack(x),
        lambda xp, x: xbp.to_numpy(x),
        lambda xp, x: x[x > 1],
        lambda xp, x: xp.stack([x, x])[xp.stack([x > 1, x > 0])],
        lambda xp, x: xp.nonzero(x),
        lambda xp, x: xp.unique_values(x),
        lambda xp, x: xp.unique_all(x),
    ],
)
def test_every_way_to_wait_is_found(strict: Any, wait: Any) -> None:
    x = xbp.asarray([1.0, 2.0])
    with assert_no_host_sync(), waits():
        wait(strict.xp, x)
    wait(strict.xp, x)  # allowed again, also after an error


def test_reading_on_the_host_is_no_wait(strict: Any) -> None:
    with xbp.use_backend("array_api_strict", device="CPU_DEVICE"), assert_no_host_sync():
        x = xbp.asarray([1.0, 2.0])
        assert float(x[0]) == 1.0
        assert x[x > 1].shape == (1,)
        assert float(np.ones(1)[0]) == 1.0


def test_moving_to_the_device_and_indexing_it_are_no_waits(strict: Any) -> None:
    with assert_no_host_sync():
        x = xbp.asarray(np.ones((2, 3)))
        x[0, ...] = strict.xp.where(x[0, ...] > 0, 2.0, x[1, ...])
        assert strict.xp.take(x, xbp.asarray([1, 0]), axis=0).shape == (2, 3)


def test_blocks_nest_and_an_error_ends_them(strict: Any) -> None:
    x = xbp.asarray([1.0])

    def nested() -> None:
        with assert_no_host_sync():
            with assert_no_host_sync():
                pass
            with waits():
                float(x[0])
            xbp.to_numpy(x)

    with waits():
        nested()
    assert float(x[0]) == 1.0
    assert xbp.to_numpy(x) == 1.0
    assert "to_numpy" not in vars(xbp.backend.LIBRARIES["array_api_strict"])


def test_a_training_step_does_not_wait(strict: Any) -> None:
    model = nn.Sequential(nn.Linear(3, 4, rng=0), nn.Dropout(0.5), nn.ReLU(), nn.Linear(4, 2))
    trainer = xbp.Trainer(
        model, nn.CrossEntropyLoss(), xbp.optim.Adam(model.parameters()), ["accuracy"], rng=0
    )
    x = xbp.asarray(np.random.default_rng(0).normal(size=(4, 3)), dtype="float32")
    y = xbp.asarray([0, 1, 1, 0])
    with assert_no_host_sync():
        trainer.step(x, y)
        trainer.step(x, y)


def test_nothing_to_guard_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    monkeypatch.setitem(sys.modules, "array_api_strict", None)
    with pytest.raises(BackendError, match="not installed"), assert_no_host_sync():
        pass


def test_cupy_is_not_imported() -> None:
    code = (
        "import sys; from xbp.testing import assert_no_host_sync\n"
        "with assert_no_host_sync(): pass\n"
        "assert 'cupy' not in sys.modules and 'torch' not in sys.modules"
    )
    pytest.importorskip("array_api_strict")
    subprocess.run([sys.executable, "-c", code], check=True)


# --- CuPy ----------------------------------------------------------------------------------------


@pytest.fixture
def cupy() -> Any:
    return pytest.importorskip("cupy")


@pytest.fixture
def x(cupy: Any) -> Any:
    """A CuPy array; without a GPU, one over the host's memory, which must not be read."""
    if cupy.cuda.is_available():
        return cupy.asarray([1.0, 2.0])
    host = np.array([1.0, 2.0])
    memory = cupy.cuda.UnownedMemory(host.ctypes.data, host.nbytes, host, device_id=0)
    return cupy.ndarray((2,), np.float64, cupy.cuda.MemoryPointer(memory, 0))


@pytest.mark.parametrize(
    "wait",
    [
        lambda cupy, x: x.get(),
        lambda cupy, x: x.item(),
        lambda cupy, x: x.tolist(),
        lambda cupy, x: x.tobytes(),
        lambda cupy, x: x.nonzero(),
        lambda cupy, x: float(x),
        lambda cupy, x: int(x),
        lambda cupy, x: bool(x),
        lambda cupy, x: complex(x),
        lambda cupy, x: 1 if x else 2,
        lambda cupy, x: str(x),
        lambda cupy, x: repr(x),
        lambda cupy, x: f"{x:.3g}",
        lambda cupy, x: pickle.dumps(x),
        lambda cupy, x: x[x.view(np.bool_)[:2]],
        lambda cupy, x: x[None, x.view(np.bool_)[:2]],
        lambda cupy, x: x.__setitem__(x.view(np.bool_)[:2], 0.0),
        lambda cupy, x: x.fill(x[0]),
        lambda cupy, x: x.__dlpack__(dl_device=(1, 0)),
        lambda cupy, x: cupy.asnumpy(x),
        lambda cupy, x: cupy.nonzero(x),
        lambda cupy, x: cupy.where(x),
        lambda cupy, x: xbp.to_numpy(x),
        lambda cupy, x: cupy.cuda.Stream.null.synchronize(),
        lambda cupy, x: cupy.cuda.ExternalStream.synchronize(SimpleNamespace()),
        lambda cupy, x: cupy.cuda.Event.synchronize(SimpleNamespace()),
        lambda cupy, x: cupy.cuda.runtime.deviceSynchronize(),
        lambda cupy, x: cupy.cuda.runtime.streamSynchronize(0),
        lambda cupy, x: cupy.cuda.runtime.eventSynchronize(0),
    ],
)
def test_every_way_to_wait_for_cupy_is_found(cupy: Any, x: Any, wait: Any) -> None:
    with assert_no_host_sync(), waits():
        wait(cupy, x)


def test_what_does_not_wait_for_cupy_is_allowed(x: Any) -> None:
    with assert_no_host_sync():
        assert x[:1].shape == x.reshape(2, 1)[0].shape == (1,)
        assert x.T.dtype == np.float64


def test_cupy_is_put_back(cupy: Any, x: Any) -> None:
    owners = cupy.ndarray, cupy.cuda.Stream, cupy.cuda.Event, cupy.cuda.runtime
    before = [dict(vars(owner)) for owner in owners]
    with pytest.raises(ZeroDivisionError), assert_no_host_sync(), assert_no_host_sync():
        _ = 1 / 0
    assert [dict(vars(owner)) for owner in owners] == before
    if not cupy.cuda.is_available():  # the real method again, which needs a device
        with pytest.raises(cupy.cuda.runtime.CUDARuntimeError):
            x.get()


# --- torch ---------------------------------------------------------------------------------------


def test_torchs_own_guard_is_used_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    modes = [0]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: modes[-1])
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)

    def wait() -> None:
        with assert_no_host_sync():
            assert modes == [0, "error"]
            raise RuntimeError("called a synchronizing CUDA operation")

    with pytest.raises(HostSyncError, match="torch tensor on CUDA"):
        wait()
    assert modes == [0, "error", 0]
    with pytest.raises(RuntimeError, match="shape"), host_sync._torch_guarded(torch):
        raise RuntimeError("wrong shape")
