"""Steps in reduced precision: their products, and the scale of the loss in float16."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np

from xbp.arguments import integer, number
from xbp.backend import Array, array_namespace, on_device_of, to_numpy
from xbp.nested import tree_map
from xbp.optim import Optimizer
from xbp.parallel.gradients import times
from xbp.primitives.reduced import check_precision, current_precision, precision

FIRST = 2.0**16
LEAST = 2.0**-24
"""A scale is halved no further, as it would become 0."""
PATIENCE = 2000
"""Consecutive steps without overflow after which the scale is doubled."""

_NO_CHANGE = nullcontext()


class LossScaling:
    """A factor of the loss, so that its gradients fit the range of float16, and its search.

    The loss is multiplied by a power of two S before the backward, and the gradients are divided by
    it. If one of them is infinite or nan, the step changes neither parameters nor the optimizer's
    arrays, and S is halved; after `PATIENCE` good steps in a row it is doubled (Micikevicius et al.
    2018, section 3.2; PyTorch's GradScaler). S, the count and the decision lie on the device: no
    step waits for them, and a recorded step contains them.

    The host does not know of the decision: an omitted step counts as one, for schedules and for the
    corrections of Adam, too.
    """

    def __init__(self) -> None:
        self.start = (FIRST, 0)  # of arrays that are made later
        self.scale: Array = None  # (1,) of float32
        self.good: Array = None  # (1,) of int64, steps since the scale or the search changed

    def place(self, like: Array) -> None:
        """Put the state where the array `like` is, unless it is there."""
        if type(self.scale) is type(like) and self.scale.device == like.device:
            return
        first, good = self.state()
        xp = array_namespace(like)
        with on_device_of(like):
            self.scale = xp.full((1,), first, dtype=xp.float32, device=like.device)
            self.good = xp.full((1,), good, dtype=xp.int64, device=like.device)

    def arrays(self) -> tuple[Array, ...]:
        """Scale and count, where they lie on a device."""
        return () if self.scale is None else (self.scale, self.good)

    def scaled(self, gradient: Any) -> Any:
        """∂(S L)/∂y for a gradient ∂L/∂y, or for each of several."""
        factor = self.scale[0]
        return tree_map(lambda g: times(factor, g), gradient)

    def step(self, optimizer: Optimizer, step: Callable[[], object]) -> None:
        """Divide the gradients by S, and make a step of the optimizer if they are finite."""
        scale, good = self.scale[0], self.good[0]
        moved = [p for p in optimizer.parameters if p.grad is not None]
        if not moved:
            step()
            return
        xp = array_namespace(scale)
        finite = xp.isfinite(scale)
        for parameter in moved:
            finite = xp.logical_and(finite, xp.all(xp.isfinite(parameter.grad)))
        for parameter in moved:
            gradient = times(1 / scale, parameter.grad)
            parameter.grad = xp.where(finite, gradient, xp.zeros_like(gradient))
        optimizer.begin_states()
        before = [xp.asarray(array, copy=True) for array in _changed(optimizer)]
        step()
        for array, old in zip(_changed(optimizer), before, strict=True):
            array[...] = xp.where(finite, array, old)
        self._search(xp, finite, scale, good)

    def _search(self, xp: Any, finite: Array, scale: Array, good: Array) -> None:
        """The scale and the count after a step."""
        count = xp.where(finite, good + 1, xp.zeros_like(good))
        enough = count >= PATIENCE
        after = xp.where(enough, 2 * scale, scale)
        self.scale[...] = xp.where(finite, after, xp.maximum(scale / 2, LEAST))
        self.good[...] = xp.where(enough, xp.zeros_like(count), count)

    # --- its state ---

    def state(self) -> tuple[float, int]:
        """Scale and count, read from the device."""
        if self.scale is None:
            return self.start
        return float(to_numpy(self.scale)[0]), int(to_numpy(self.good)[0])

    def state_dict(self) -> dict[str, Any]:
        scale, good = self.state()
        return {"scale": scale, "good_steps": good}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the result of `state_dict`.

        Raises
        ------
        InputError
        """
        scale = number("the scale of the loss", state.get("scale"), least=LEAST)
        good = integer("the steps since it changed", state.get("good_steps"), least=0)
        self.start = (scale, good)
        if self.scale is not None:
            self.scale[...] = scale
            self.good[...] = good


def _changed(optimizer: Optimizer) -> list[Array]:
    """The arrays that a step changes."""
    found = []
    for parameter, state in zip(optimizer.parameters, optimizer.state, strict=True):
        if parameter.grad is not None:
            found += [parameter.data, *state.values()]
    return found


def scaling_for(name: Any) -> LossScaling | None:
    """The search for a precision: float16 alone has exponents too small for gradients.

    Raises
    ------
    InputError
        There is no precision of that name.
    """
    return LossScaling() if check_precision(name) == "float16" else None


def expecting_overflow() -> AbstractContextManager[object]:
    """A context without numpy's warnings of overflow, which the search of a scale provokes."""
    return np.errstate(over="ignore", invalid="ignore")


def computing(name: str) -> AbstractContextManager[object]:
    """A context in which forward and backward have this precision, without such warnings."""
    return _NO_CHANGE if name == current_precision() == "float32" else _reduced(name)


@contextmanager
def _reduced(name: str) -> Iterator[None]:
    with expecting_overflow(), precision(name):
        yield
