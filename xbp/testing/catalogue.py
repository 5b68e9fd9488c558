"""The items of `xbp parity`: every case of the table (`xbp.testing.cases`), and whole trainings.

An item's title is the call in Python and the shapes of its inputs, so that a failure can be
reproduced. Each case of a layer, loss or primitive adds two items: a batch of one, and arrays that
are contiguous in no order. All numbers come from seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from xbp import accelerators, initializers, nn, optim, registry
from xbp.backend import Array, array_namespace, brief, use_backend
from xbp.nested import tree_map
from xbp.testing.cases import (
    DIFFERENTIABLE,
    INITIALIZERS,
    LAYERS,
    LOSSES,
    MODELS,
    OPTIMIZERS,
    PRIMITIVES,
    Case,
    Initializer,
    Rule,
)
from xbp.testing.cases.arrays import normal, scattered
from xbp.testing.cases.case import filled, given_to, shape_of, written
from xbp.testing.curves import TRAININGS, Training
from xbp.testing.finding import Finding
from xbp.testing.gradients import check_gradients
from xbp.testing.helpers import replaced
from xbp.testing.parity import findings

Host: TypeAlias = NDArray[Any]


@dataclass(frozen=True)
class Item:
    """One case, as `xbp.testing.findings` takes it.

    Attributes
    ----------
    kind : str
        ``"layer"``, ``"loss"``, ``"model"``, ``"optimizer"``, ``"initializer"``, ``"primitive"``.
    name : str
        The public name, ``"Conv2d"``.
    case : str
        The constructor's call and the inputs: ``"Conv2d(1, 6, 5) of (2, 1, 9, 9)"``.
    make : callable
    inputs : tuple of numpy arrays
    differentiable : bool
        Whether its gradients are compared with numeric derivatives, away from kinks.
    not_in_onnx : str
        The reason why it has no ONNX file; empty if it has one.
    """

    kind: str
    name: str
    case: str
    make: Callable[..., Any]
    inputs: tuple[Host, ...]
    differentiable: bool = False
    not_in_onnx: str = ""

    def check(self, backends: Iterable[str]) -> list[Finding]:
        """The findings on each of the backends.

        The truth's gradients are checked numerically, too, for errors common to all backends.
        """
        backends = list(backends)
        found = findings(self.make, *self.inputs, backends=backends)
        if self.differentiable:
            try:
                self._check_truth()
            except AssertionError as error:
                problem = f"the truth is wrong: {brief(error)}"
                found += [
                    Finding(name, "float64", "the gradients", "backward", 0.0, 0.0, problem)
                    for name in backends
                ]
        return found

    def _check_truth(self) -> None:
        subject = self.make()
        several = hasattr(subject, "forward") and len(self.inputs) > 1
        with use_backend("numpy"), accelerators.disabled():
            inputs = (self.inputs,) if several else self.inputs
            check_gradients(subject, *inputs, most=20 if self.kind == "model" else 200)


def catalogue() -> Iterator[Item | Training]:
    """All items by kind, then whole trainings."""
    for line in (*LAYERS, *MODELS, *LOSSES):
        for case in line.cases():
            yield from _items(case)
    for optimizer in OPTIMIZERS:
        for rule in optimizer.rules():
            yield from _steps(rule)
    yield from _clipping()
    for initializer in INITIALIZERS:
        yield from _draws(initializer)
    of_primitives = list(_primitives())
    yield from of_primitives
    for accelerator in working_accelerators():
        for item in of_primitives:
            if item.name == accelerator.name:
                fields = vars(item) | {"kind": "accelerator"}
                yield AcceleratorItem(**fields, accelerator=accelerator)
    yield from TRAININGS


def working_accelerators() -> list[accelerators.Accelerator]:
    """The accelerators in use; none if they are switched off."""
    return accelerators.registered() if accelerators.enabled() else []


# --- items of a line of the table -----------------------------------------------------------------


def _items(case: Case) -> Iterator[Item]:
    """Items of a layer, network or loss."""
    inputs, reason = case.inputs(), case.line.not_in_onnx
    wrap = _ScatteredLoss if case.kind == "loss" else _Scattered
    for given in (inputs, tuple(array[:1] for array in inputs)):
        title = f"{case.call} of {shape_of(given[0])}"
        yield Item(case.kind, case.name, title, case.make, given, case.differentiable, reason)
    title = f"{case.call} of {shape_of(inputs[0])}, scattered"
    yield Item(case.kind, case.name, title, lambda: wrap(case.make()), inputs, False, reason)


def _steps(rule: Rule) -> Iterator[Item]:
    """Ten steps with gradients of scales from 0.01 to 100."""
    for shape in ((3, 4), (41, 20) if rule.name == "Muon" else (4099,)):
        scales = 10 ** np.random.default_rng(3).uniform(-2, 2, shape)
        gradients = (scales * normal(*shape, seed=seed) for seed in range(10, 20))
        inputs = (normal(*shape), *gradients)
        yield Item("optimizer", rule.name, f"{rule} for {shape}", rule.__call__, inputs)


def _clip(clip: Callable[..., Any], most: float, g: Array) -> Array:
    parameter = nn.Parameter(array_namespace(g).zeros_like(g))
    parameter.add_grad(g)
    clip([parameter], most)
    return parameter.grad


def _clipping() -> Iterator[Item]:
    for clip in (optim.clip_grad_norm, optim.clip_grad_value):
        for most in (0.5, 1e3):
            name = clip.__name__
            case = f"{name}(…, {most:g}) of (7, 5)"
            yield Item("optimizer", name, case, _function(_clip, clip, most), (normal(7, 5),))


def _draw(init: initializers.Initializer, shape: tuple[int, ...]) -> Host:
    return init(shape, np.random.default_rng(0))


def _draws(line: Initializer) -> Iterator[Item]:
    init = partial(getattr(initializers, line.name), **line.options)
    for shape in line.shapes:
        case = f"{line.name}({written((), line.options)}) of {shape}"
        yield Item("initializer", line.name, case, _function(_draw, init, shape), ())


def _primitives() -> Iterator[Item]:
    for name, function, arrays in PRIMITIVES:
        yield from _primitive(name, function, arrays)
    for name, function, arrays in DIFFERENTIABLE:
        yield from _differentiable(name, function, arrays)


def _primitive(
    name: str, function: Callable[..., Array], arrays: tuple[Any, ...]
) -> Iterator[Item]:
    inputs = tuple(map(filled, arrays))
    given = given_to(function)
    case = f"{name}({given}) of {', '.join(map(shape_of, inputs))}"
    yield Item("primitive", name, case, lambda: function, inputs)
    make = _function(_of_scattered, function)
    yield Item("primitive", name, f"{case}, scattered", make, inputs)


def _differentiable(
    name: str, function: Callable[..., Any], arrays: tuple[Any, ...]
) -> Iterator[Item]:
    inputs = tuple(map(filled, arrays))
    given = given_to(function)
    case = f"{name}({given}) of {', '.join(map(shape_of, inputs))}"

    def make() -> nn.Layer:
        return _Differentiable(function)

    # Of rounded factors, as a function, it is constant between two jumps.
    smooth = _smooth(inputs[0]) and not name.startswith("rounded_")
    yield Item("primitive", name, case, make, inputs, smooth)
    yield Item("primitive", name, f"{case}, scattered", lambda: _Scattered(make()), inputs)


@dataclass(frozen=True, kw_only=True)
class AcceleratorItem(Item):
    """A primitive's case on the backend of its accelerator, which may decline it."""

    accelerator: accelerators.Accelerator

    def check(self, backends: Iterable[str]) -> list[Finding]:
        """The accelerator's findings; none if it declines, or belongs to another backend."""
        _, backend, function = self.accelerator
        accepted = []

        def observed(*arguments: Any, **keywords: Any) -> Any:
            result = function(*arguments, **keywords)
            accepted.append(result is not NotImplemented)
            return result

        def find(name: str, kind: type) -> Any:
            fast = before(name, kind)
            return observed if fast is function else fast

        if backend not in backends:
            return []
        before = registry.find
        with replaced(registry, find=find):
            found = super().check([backend])
        return found if any(accepted) else []


def _function(function: Callable[..., Any], *first: Any) -> Callable[[], Any]:
    """Makes a function of what remains of the arguments."""
    return lambda: partial(function, *first)


def _smooth(x: Host) -> bool:
    """Whether a case has derivatives to compare with: no kink, and no infinity."""
    return bool(np.all(x)) and bool(np.all(np.isfinite(x)))


# --- memory order ---------------------------------------------------------------------------------


def _of_scattered(function: Callable[..., Array], *arrays: Array) -> Array:
    return function(*(scattered(array) for array in arrays))


class _Differentiable(nn.Layer):
    """A function that returns its backward, as a layer."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def forward(
        self, x: Any, *, training: bool = False, rng: Any = None
    ) -> tuple[Array, nn.Backward]:
        y, backward = self.function(*x) if isinstance(x, tuple) else self.function(x)
        return y, backward


class _Scattered(nn.Layer):
    """A layer whose inputs and incoming gradient are `scattered`."""

    def __init__(self, layer: nn.Layer) -> None:
        self.layer = layer

    def forward(
        self, x: Any, *, training: bool = False, rng: Any = None
    ) -> tuple[Array, nn.Backward]:
        y, backward = self.layer.forward(tree_map(scattered, x), training=training, rng=rng)
        return y, lambda dy: backward(scattered(dy))


class _ScatteredLoss(nn.Loss):
    def __init__(self, loss: nn.Loss) -> None:
        self.loss = loss

    def __call__(self, prediction: Array, target: Array) -> tuple[Array, Array]:
        return self.loss(scattered(prediction), scattered(target))
