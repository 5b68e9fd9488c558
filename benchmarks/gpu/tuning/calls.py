"""Whatever the benchmarks' training steps ask for: calls of accelerators, found and made again.

A step is run on numpy arrays by a machine that computes nothing. Each call of an accelerator that
asks `xbp.accelerators.cuda.tuned` for something is noted with the shapes of its arrays, and so is
each call of its gradients. Such a call is then made with random arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, wraps
from typing import Any, NamedTuple

import numpy as np

from benchmarks.gpu.roofline.arithmetic import bytes_of, flop
from benchmarks.gpu.roofline.device import EMPTY, H200
from benchmarks.gpu.roofline.dry import Launch, Watcher, run
from benchmarks.gpu.tuning.choosing import Asked, asking
from benchmarks.gpu.tuning.row import Case, Draw, error_of
from xbp.accelerators import cuda
from xbp.accelerators.chains import accelerated
from xbp.accelerators.cuda import activations, launch
from xbp.accelerators.shared import inverse
from xbp.benchmarks.workloads import WORKLOADS
from xbp.primitives import rounded

STEPS = [
    (name, it.sizes[0], "float32")
    for name, it in WORKLOADS.items()
    if it.model and it.kind == "train" and it.where != "named"
]
SIZES = [
    *STEPS,
    *(("lenet5-train", size, "float32") for size in (128, 2048)),
    *((name, WORKLOADS[name].sizes[0], "bfloat16") for name in ("vgg", "resnet20", "gpt")),
]
"""The steps: workload, batch size and precision."""
TERMS = 2**14
"""The terms of a sum, for the bound of errors; a larger number than that of most."""
BOTH = frozenset({"large", "short"})
"""What decides of the gradients, too, so that a call is timed together with them."""


class Drawn(NamedTuple):
    """An array to be drawn: its shape, dtype and order of axes in memory."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    order: tuple[int, ...]

    def draw(self, draw: Draw, most: int) -> Any:
        """Random numbers; whole ones below `most`.

        Real ones are so small that sums over the last axis are of order 1, as otherwise a recurrent
        layer would be chaotic; and positive along one axis, as variances are.
        """
        array = draw(*(self.shape[axis] for axis in self.order))
        if self.dtype.kind == "f" and self.shape:
            small = array * float(self.shape[-1] ** -0.5)
            array = small if len(self.shape) > 1 else abs(small)
        if self.dtype.kind == "b":
            array = array > 0
        elif self.dtype.kind in "iu":
            array = (abs(array) * 2**20).astype(self.dtype) % most
        return array.astype(self.dtype, copy=False).transpose(inverse(self.order))


@dataclass
class Call:
    """A call of an accelerator in a step, or of its gradients.

    Attributes
    ----------
    function : callable
    args, keywords : tuple, dict
        With `Drawn` in place of arrays.
    asked : Asked
    launches : list of Launch
        What it took.
    then : (tuple, dict) or None
        The arguments of its gradients.
    backward : bool
        Whether this is the call of the gradients.
    """

    function: Callable[..., Any]
    args: tuple[Any, ...]
    keywords: dict[str, Any]
    asked: Asked = field(default_factory=dict)
    launches: list[Launch] = field(default_factory=list)
    then: tuple[tuple[Any, ...], dict[str, Any]] | None = None
    backward: bool = False

    @property
    def flop(self) -> int:
        return sum(flop(it) or 0 for it in self.launches)

    @property
    def seconds(self) -> float:
        """The least time on an H200."""
        return least(self.launches)

    def most(self) -> int:
        """The bound of whole numbers, which are indices of an embedding's table."""
        tables = [it for it in self.args if isinstance(it, Drawn) and it.dtype.kind == "f"]
        return int(tables[0].shape[0]) if tables and tables[0].shape else 1

    def made(self, it: Any, draw: Draw) -> Any:
        """`it` with arrays in place of what is to be drawn."""
        if isinstance(it, Drawn):
            return it.draw(draw, self.most())
        return type(it)(self.made(each, draw) for each in it) if type(it) in (tuple, list) else it


def least(launches: list[Launch]) -> float:
    """The least seconds of launches on an H200."""
    each = ((EMPTY, (flop(it) or 0) / H200.flop, bytes_of(it) / H200.bandwidth) for it in launches)
    return sum(map(max, each))


def described(it: Any) -> Any:
    """`it` with `Drawn` in place of arrays."""
    if isinstance(it, np.ndarray):
        order = tuple(sorted(range(it.ndim), key=lambda axis: -it.strides[axis]))
        return Drawn(it.shape, it.dtype, order)
    return type(it)(map(described, it)) if type(it) in (tuple, list) else it


def watched(
    function: Callable[..., Any], watcher: Watcher, calls: list[Call]
) -> Callable[..., Any]:
    """An accelerator whose calls are noted if they ask for something."""

    @wraps(function)
    def call(*args: Any, **keywords: Any) -> Any:
        its, begin = Call(function, described(args), keywords), len(watcher.launches)
        with asking() as its.asked:
            result = function(*args, **keywords)
        if result is NotImplemented:
            return result
        its.launches = watcher.launches[begin:]
        calls.append(its)
        if not (isinstance(result, tuple) and callable(result[-1])):
            return result

        def gradients(*given: Any, **options: Any) -> Any:
            its.then = described(given), options
            own, begin = Call(function, its.args, keywords, then=its.then), len(watcher.launches)
            own.backward = True
            with asking() as own.asked:
                found = result[-1](*given, **options)
            own.launches = watcher.launches[begin:]
            calls.append(own)
            return found

        return (*result[:-1], gradients)

    return call


@lru_cache(None)
def calls_of(workload: str, batch: int, precision: str) -> tuple[list[Call], float]:
    """The calls of a workload's step that ask for something, and the step's least seconds."""
    watcher, calls = Watcher(""), list[Call]()

    def noted(function: Callable[..., Any]) -> Callable[..., Any]:
        return watched(function, watcher, calls)

    functions = [noted(it) for it in cuda.implementations() if not it.__name__.startswith("chain")]
    by_operation = {match: noted(function) for match, function in cuda.BY_OPERATION.items()}
    run(workload, batch, watcher, [*functions, accelerated(by_operation)], precision)
    return [call for call in calls if call.asked], least(watcher.launches)


# --- again ---------------------------------------------------------------------------------------


def case_of(call: Call, both: bool, draw: Draw) -> Case:
    """A call with random arrays; its gradients alone, or after it if `both`."""
    args = call.made(call.args, draw)
    given, options = call.then if call.then is not None else ((), {})
    given = call.made(given, draw)

    @lru_cache(None)
    def forward(machine: Any) -> Any:
        return made(call, args)

    def run() -> Any:
        if call.backward:
            return forward(launch.machine_of(args[0]))[-1](*given, **options)
        result = made(call, args)
        if both and call.then is not None:
            return (*result[:-1], result[-1](*given, **options))
        return result

    @lru_cache(None)
    def truth() -> list[Any]:
        """By the rules, in float64 if the accelerator computes it."""
        with asking():
            result = call.function(*map(doubled, args), **call.keywords)
            if result is NotImplemented:  # float32 alone
                return list(numbers_in(run()))
            if call.then is not None and (call.backward or both):
                found = result[-1](*map(doubled, given), **options)
                result = found if call.backward else (*result[:-1], found)
        return list(numbers_in(result))

    def error(found: Any) -> float:
        pairs = zip(numbers_in(found), truth(), strict=True)
        errors = [error_of(array, true, TERMS) for array, true in pairs]
        return max(errors) if all(it == it for it in errors) else float("nan")

    return Case(run, error, lambda: lambda: None)


def made(call: Call, args: Sequence[Any]) -> Any:
    """The result of a call; where the accelerator declines it, by what the package does then."""
    result = call.function(*args, **call.keywords)
    if result is not NotImplemented:
        return result
    keywords = dict(call.keywords)
    if not keywords.pop("relu", False):
        return getattr(rounded, call.function.__name__).reference(*args, **keywords)
    y, gradients = call.function(*args, **keywords)
    z, through = activations.rectify(y)
    return z, lambda dy, *wants_dx: gradients(*through(dy), *wants_dx)


def doubled(it: Any) -> Any:
    """Arrays of real numbers in float64."""
    if type(it) in (tuple, list):
        return type(it)(map(doubled, it))
    real = getattr(getattr(it, "dtype", None), "kind", "") == "f"
    return it.astype("f8") if real else it


def numbers_in(result: Any) -> Iterator[Any]:
    """The arrays of real numbers in a result."""
    if isinstance(result, tuple | list):
        for each in result:
            yield from numbers_in(each)
    elif getattr(getattr(result, "dtype", None), "kind", "") == "f" and result.size:
        yield result
