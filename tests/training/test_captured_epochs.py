"""A captured epoch of everything that trains equals an eager one, bit for bit.

On array_api_strict as strict as CuPy, and on CuPy itself where there is one.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from nightly import NIGHTLY
from training.epochs import CALLBACKS, EPOCHS, METRICS, NEEDS, RULES, Epoch, check, named

import xbp
from xbp import training
from xbp.backend import LIBRARIES, available_backends, find_backend
from xbp.testing import cases, emulated_graphs

pytest.importorskip("array_api_strict")


def layer_of(name: str) -> str:
    """The name without options; that of an optimizer with them."""
    return name.partition("(")[0] if name not in map(str, RULES) else name


# Of the options of a layer or loss, those of the first epoch and of the last one; nightly all.
VARIANTS = [list(same) for _, same in groupby(EPOCHS, layer_of)]
CHOSEN = [
    EPOCHS[name]
    for same in VARIANTS
    for name in (same if NIGHTLY else same[:: max(1, len(same) - 1)])
]
PLACES = [name for name in ("array_api_strict", "cupy") if name in available_backends()]


def in_place(work: Callable[[], Any]) -> None:
    work()


def in_a_thread(work: Callable[[], Any]) -> None:
    """A new thread starts with the first device of its library."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(work).result()


def beside_another_device(work: Callable[[], Any]) -> None:
    LIBRARIES["array_api_strict"].activate(find_backend("array_api_strict").device)
    work()


@pytest.fixture
def second_device() -> Iterator[None]:
    """The second device for new arrays, emulated if there is only one."""
    before = xbp.get_backend()
    with emulated_graphs():
        xbp.set_backend("array_api_strict", device="device2")
        yield
        xbp.set_backend(before.name, device=before.device)


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest) -> Iterator[Callable[..., None]]:
    """How a training runs: on CuPy, or in a thread whose current device is not the training's."""
    if request.param == "cupy":
        with xbp.use_backend("cupy"):
            yield in_place
    else:
        request.getfixturevalue("second_device")
        yield in_a_thread


@pytest.mark.parametrize("epoch", CHOSEN, ids=str)
def test_a_captured_epoch_is_an_epoch(
    epoch: Epoch, place: Callable[..., None], tmp_path: Path
) -> None:
    if epoch.callback in NEEDS and not importlib.util.find_spec(NEEDS[epoch.callback]):
        pytest.skip(f"needs {NEEDS[epoch.callback]}")
    place(lambda: check(epoch, tmp_path))


SOME = "Conv2d", "long LSTM", "Dropout", "L1Loss", "Adam", "metric f1"


@pytest.mark.parametrize("name", SOME)
def test_on_the_first_device_and_in_the_main_thread(name: str, tmp_path: Path) -> None:
    with xbp.use_backend("array_api_strict"), emulated_graphs():
        check(named(name), tmp_path)


@pytest.mark.parametrize("name", SOME)
def test_a_model_is_captured_on_its_own_device(
    name: str, tmp_path: Path, second_device: None
) -> None:
    beside_another_device(lambda: check(named(name), tmp_path))


def test_everything_that_trains_is_in_the_table() -> None:
    trained = {case.name for case in cases.CASES if case.line.oracle and case.line.trains}
    begins = [re.match(r"\w*", name).group() for name in EPOCHS]  # type: ignore[union-attr]
    assert trained <= set(begins)
    owns = {n: kind for n, kind in vars(training).items() if isinstance(kind, type)}
    assert {n for n, k in owns.items() if issubclass(k, training.Callback)} == set(CALLBACKS)
    metrics = {n for n, k in owns.items() if issubclass(k, training.Metric)} - {"Metric"}
    assert metrics <= set(METRICS)
