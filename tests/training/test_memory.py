"""Too little memory: one sentence with the size that failed and one that may fit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import xbp
from xbp import nn, optim
from xbp.backend import LIBRARIES, asked_for, free_memory, out_of_memory
from xbp.errors import OutOfMemoryError, XBPError
from xbp.testing import emulated_graphs
from xbp.training.memory import in_words

GIB = 2**30


class Greedy(nn.Layer):
    """A layer with memory for a number of samples, which fails like a library."""

    def __init__(self, room: int, error: Callable[[int], Exception]) -> None:
        self.room, self.error, self.asked = room, error, list[int]()

    def forward(self, x: Any, *, training: bool = False, rng: Any = None) -> Any:
        n = x.shape[0]
        self.asked.append(n)
        if training and n > self.room:
            raise self.error(n)
        return x, lambda dy: dy


class TorchsError(RuntimeError):
    """An error like torch.OutOfMemoryError."""


def torchs(n: int) -> Exception:
    return TorchsError(f"CUDA out of memory. Tried to allocate {n}.00 GiB. GPU 0 has …\nmore lines")


def numpys(n: int) -> Exception:
    return MemoryError(f"Unable to allocate {n} GiB for an array with shape (…)")


def trainer_of(greedy: nn.Layer) -> xbp.Trainer:
    model = nn.Sequential(nn.Linear(2, 2, dtype="float64", rng=0), greedy)
    return xbp.Trainer(model, nn.MSELoss(), optim.Adam(model.parameters()), rng=0)


def sentence(trainer: xbp.Trainer, batch_size: int) -> str:
    x = np.ones((64, 2))
    before = trainer.model.state_dict()
    with pytest.raises(OutOfMemoryError) as caught:
        trainer.fit(x, x, batch_size=batch_size)
    assert isinstance(caught.value, MemoryError)
    assert isinstance(caught.value, XBPError)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
    assert all(parameter.grad is None for parameter in trainer.model.parameters())
    state = trainer.model.state_dict()
    assert all(np.array_equal(before[name], state[name]) for name in state)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("free", "size"), [(512, 32), (511, 16), (64, 4), (16, 1), (None, 32)], ids=str
)
def test_on_the_host_the_size_of_what_was_asked_for_decides(
    free: int | None, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """64 GiB for 64 samples, with an assumed four such arrays per step."""
    there = None if free is None else free * GIB // 4
    monkeypatch.setattr("xbp.training.memory.free_memory", lambda array: there)
    greedy = Greedy(0, lambda n: numpys(64))
    message = sentence(trainer_of(greedy), 64)
    assert message.startswith(
        "a step with batch size 64 needs too much memory: 64.0 GiB were asked for"
    )
    assert f"a batch size of {size} would probably fit (on numpy (cpu))" in message
    assert ("were free" in message) == (free is not None)
    assert set(greedy.asked) == {1, 64}  # the check before training, and the step


def test_where_nothing_fits_a_smaller_model_is_advised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xbp.training.memory.free_memory", lambda array: 1000)
    message = sentence(trainer_of(Greedy(0, numpys)), 8)
    assert "8.0 GiB were asked for, 1000 bytes were free; not even a batch size of 1" in message
    unknown = Greedy(0, lambda n: MemoryError())
    assert "more was asked for than there is" in sentence(trainer_of(unknown), 8)
    assert "a batch size of 4 would" in sentence(trainer_of(unknown), 8)


@pytest.mark.parametrize("backend", ["array_api_strict", "torch"])
def test_on_a_device_smaller_batches_are_tried(backend: str) -> None:
    pytest.importorskip(backend)
    with xbp.use_backend(backend), emulated_graphs():
        for room, expected in ((9, "size of 8 would"), (8, "size of 8 would"), (0, "not even a")):
            greedy = Greedy(room, torchs)
            trainer = trainer_of(greedy)
            trainer.capture = False
            assert f"{expected}" in sentence(trainer, 64)
            assert greedy.asked[-1] == max(8 if room else 1, 1)


class Wide(nn.Layer):
    """A layer without memory for this number of samples in inference."""

    def __init__(self, room: int) -> None:
        self.room = room

    def forward(self, x: Any, *, training: bool = False, rng: Any = None) -> Any:
        if not training and x.shape[0] > self.room:
            raise numpys(x.shape[0])
        return x, lambda dy: dy


@pytest.mark.parametrize("backend", ["numpy", "array_api_strict"])
def test_predicting_and_evaluating_say_it_too(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(backend)
    monkeypatch.setattr("xbp.training.memory.free_memory", lambda array: 32 * GIB)
    x = np.ones((64, 2))
    with xbp.use_backend(backend):
        trainer = trainer_of(Wide(8))
        for what, call in {
            "predicting with batch size 32": lambda: trainer.predict(x, 32),
            "evaluating with batch size 64": lambda: trainer.evaluate(x, x, 64),
            "evaluating with batch size 512": lambda: trainer.fit(x, x, validation_data=(x, x)),
        }.items():
            with pytest.raises(OutOfMemoryError, match="would probably fit") as caught:
                call()
            assert str(caught.value).startswith(f"{what} needs too much memory: ")
            assert "a batch size of 8 would" in str(caught.value)
            assert caught.value.__suppress_context__
        assert trainer.predict(x, 8).shape == (64, 2)


def test_what_was_taken_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """No attempt follows the last one, whose memory a library would keep."""
    pytest.importorskip("array_api_strict")
    events: list[Any] = []
    greedy = Greedy(8, torchs)
    with xbp.use_backend("array_api_strict") as backend:
        library = LIBRARIES["array_api_strict"]

        def free(device: Any) -> None:
            assert device == backend.device
            events.append(len(greedy.asked))

        monkeypatch.setattr(library, "free_memory", free, raising=False)
        sentence(trainer_of(greedy), 64)
    assert events[-1] == len(greedy.asked)


def test_what_was_tried_may_fail_in_another_way() -> None:
    pytest.importorskip("array_api_strict")

    def error(n: int) -> Exception:
        return numpys(n) if n == 64 else ZeroDivisionError()

    with xbp.use_backend("array_api_strict"):
        trainer = trainer_of(Greedy(0, error))
        with pytest.raises(ZeroDivisionError):
            trainer.fit(np.ones((64, 2)), np.ones((64, 2)), batch_size=64)


def test_another_error_is_left_alone() -> None:
    trainer = trainer_of(Greedy(0, lambda n: RuntimeError("something else")))
    with pytest.raises(RuntimeError, match=r"^something else$"):
        trainer.fit(np.ones((4, 2)), np.ones((4, 2)))


def test_numpys_own_error_is_understood() -> None:
    with pytest.raises(MemoryError) as caught:
        np.empty((2**30, 2**20))
    assert out_of_memory(caught.value)
    assert asked_for(caught.value) == 2**53


SAID = [
    ("CUDA out of memory. Tried to allocate 1.50 GiB. GPU 0 has a total", 3 * 2**29),
    ("Out of memory allocating 1,048,576 bytes (allocated so far: 5 bytes).", 2**20),
    ("DefaultCPUAllocator: can't allocate memory: you tried to allocate 400 bytes. Error", 400),
    ("cudaErrorMemoryAllocation: out of memory", None),
    ("out of memory: Unable to allocate 7. TiB for an array with shape (…)", 7 * 2**40),
]


@pytest.mark.parametrize(("text", "size"), SAID)
def test_what_libraries_say(text: str, size: int | None) -> None:
    assert out_of_memory(RuntimeError(text))
    assert asked_for(RuntimeError(text)) == size
    assert not out_of_memory(RuntimeError("shapes differ"))
    assert asked_for(RuntimeError("shapes differ")) is None


def test_torchs_own_error_is_understood() -> None:
    torch = pytest.importorskip("torch")
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50)
    assert out_of_memory(caught.value)
    assert asked_for(caught.value) == 2**52


def test_free_memory_of_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    free = free_memory(np.zeros(1))
    assert free is None or free > 2**20

    def unknown(name: str) -> int:
        raise ValueError(name)

    monkeypatch.setattr("os.sysconf", unknown)
    assert free_memory(np.zeros(1)) is None
    assert free_memory([1.0]) is None


@pytest.mark.parametrize(
    ("size", "words"), [(0, "0 bytes"), (1023, "1023 bytes"), (1024, "1.0 KiB"), (2**63, "8.0 EiB")]
)
def test_sizes_in_words(size: int, words: str) -> None:
    assert in_words(size) == words
