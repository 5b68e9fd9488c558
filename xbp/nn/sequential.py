"""Layers one after the other; the chain rule, from the last to the first."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any, TypeGuard
from weakref import WeakKeyDictionary

from xbp.arguments import described
from xbp.backend import Array
from xbp.errors import InputError, UnknownIndexError
from xbp.nn.backward import (
    Backward,
    Rng,
    TwoPartBackward,
    for_parameters,
    run_forward,
    without_backward,
)
from xbp.nn.composite import Composite
from xbp.nn.layer import Layer
from xbp.nn.operation import OperationChain, is_operation
from xbp.random import RandomStream, as_stream


class Sequential(Layer):
    """y = f_n(… f_2(f_1(x))); backward runs through the same layers from the last to the first.

    Parameters
    ----------
    *layers : Layer
        Named ``"0"``, ``"1"``, … in state dicts, as in PyTorch.

    Notes
    -----
    Neighbouring operation layers (`OperationLayer`: Linear, Conv2d, ReLU, Flatten, …), those of
    nested Sequentials included, are one call of `xbp.primitives.chain`, which an accelerator may
    fuse. To fuse the layers of a hand-written layer, hold them in a Sequential, ``self.body =
    nn.Sequential(…)``, and call its `forward`.

    Examples
    --------
    >>> from xbp import nn
    >>> model = nn.Sequential(nn.Linear(2, 3, rng=0), nn.Tanh(), nn.Linear(3, 1, rng=1))
    >>> [name for name, _ in model.named_parameters()]
    ['0.weight', '0.bias', '2.weight', '2.bias']
    """

    def __init__(self, *layers: Layer) -> None:
        for index, layer in enumerate(layers):
            if not isinstance(layer, Layer):
                kind = type(layer).__name__
                if isinstance(layer, type):
                    kind = f"type; make a layer of it, {layer.__name__}(…)"
                elif isinstance(layer, list | tuple):
                    kind = f"{kind}; give its layers one by one, Sequential(*layers)"
                elif hasattr(layer, "register_forward_hook"):
                    kind = "module of PyTorch; make a layer of it, xbp.interop.torch.as_layer(…)"
                msg = f"Sequential takes layers; argument {index} is a {kind}"
                raise InputError(msg)
        self.layers = layers

    def forward(
        self, x: Array, *, training: bool = False, rng: Rng = None
    ) -> tuple[Array, Backward]:
        rng = as_stream(rng) if training else None  # one stream for all layers
        backwards = []
        for part in plan_of(self).parts:
            if isinstance(part, OperationChain):
                x, backward = part.forward(x, training)
            else:
                x, backward = run_forward(part, x, training=training, rng=rng)
            backwards.append(backward)
        if len(backwards) == 1:
            return x, backward

        def gradients(dy: Array, wants_dx: bool) -> tuple[Array]:
            for backward in reversed(backwards[1:]):
                dy = backward(dy)
            for first in backwards[:1]:
                dy = first(dy) if wants_dx else for_parameters(first)(dy)
            return (dy,)

        return x, TwoPartBackward(gradients)

    @without_backward
    def __call__(self, x: Array) -> Array:
        if "forward" in vars(self):
            return super().__call__(x)
        for part in plan_of(self).parts:
            if isinstance(part, OperationChain):
                for x in part.infer(x):  # noqa: B007, B020  frees each output before the next
                    pass
            else:
                x = part(x)
        return x

    def children(self) -> Iterator[tuple[str, Layer]]:
        """Layers by the names ``0``, ``1``, …; further ones of a subclass by their attributes."""
        for index, layer in enumerate(self.layers):
            yield str(index), layer
        for name, layer in super().children():
            if not name.startswith("layers."):
                yield name, layer

    def __len__(self) -> int:
        return len(self.layers)

    def __iter__(self) -> Iterator[Layer]:
        return iter(self.layers)

    def __getitem__(self, index: int | slice) -> Layer:
        """A layer, or for a slice a Sequential of the same layers, with shared parameters.

        Raises
        ------
        UnknownIndexError
            There is no layer of this index.
        InputError
            `index` is neither an integer nor a slice of integers.
        """
        name, n = type(self).__name__, len(self.layers)
        try:
            found = self.layers[index]
        except IndexError:
            last = f"; the last of its {n} is {n - 1}" if n else ", as it has none"
            msg = f"{name} has no layer {index}{last}"
            raise UnknownIndexError(msg) from None
        except TypeError:
            msg = f"{name} is indexed by an integer or a slice of integers, got {described(index)}"
            raise InputError(msg) from None
        return Sequential(*found) if isinstance(found, tuple) else found

    def __repr__(self) -> str:
        lines = [f"  ({name}): {layer!r}".replace("\n", "\n  ") for name, layer in self.children()]
        return "\n".join([f"{type(self).__name__}(", *lines, ")"])


class Plan:
    """The layers of a Sequential, with nested Sequentials flattened.

    Attributes
    ----------
    parts : list of Layer or OperationChain
        In order; two or more neighbouring operation layers form an `OperationChain`.
    """

    def __init__(self, model: Sequential) -> None:
        self.layers = model.layers
        self.inner: list[tuple[Sequential, Any]] = []  # with their layers
        self.parts: list[Layer | OperationChain] = []
        self.single: list[tuple[Layer, bool]] = []  # with `is_operation`
        for operation, layers in groupby(self._flattened(model.layers), is_operation):
            neighbours: list[Any] = list(layers)
            if operation and len(neighbours) > 1:
                self.parts.append(OperationChain(neighbours))
            else:
                self.parts += neighbours
                self.single += [(layer, operation) for layer in neighbours]
        self.chains = [part for part in self.parts if isinstance(part, OperationChain)]

    def _flattened(self, layers: Iterable[Layer]) -> Iterator[Layer]:
        for layer in layers:
            if is_sequential(layer):
                self.inner.append((layer, layer.layers))
                yield from self._flattened(layer.layers)
            else:
                yield layer

    def holds(self, model: Sequential) -> bool:
        """Whether the plan is still that of `model`."""
        if model.layers is not self.layers or type(self.layers) is not tuple:
            return False
        for inner, layers in self.inner:
            if inner.layers is not layers or type(layers) is not tuple:
                return False
            if not is_sequential(inner):
                return False
        for layer, operation in self.single:
            if is_operation(layer) != operation or is_sequential(layer):
                return False
        return all(chain.holds() for chain in self.chains)


_plans: WeakKeyDictionary[Sequential, Plan] = WeakKeyDictionary()


def plan_of(model: Sequential) -> Plan:
    """The cached plan of a model, made anew when the model has changed."""
    try:
        plan = _plans.get(model)
        if plan is None or not plan.holds(model):
            plan = _plans[model] = Plan(model)
    except TypeError:  # a subclass that has no hash
        plan = Plan(model)
    return plan


def is_sequential(layer: Layer) -> TypeGuard[Sequential]:
    """Whether a layer only runs its layers one after the other."""
    kind = type(layer)
    changed = kind.__call__ is not Sequential.__call__ or kind.forward is not Sequential.forward
    return not changed and "forward" not in vars(layer)


def named_outputs(
    layer: Layer, x: Array, *, training: bool = False, rng: Rng = None, name: str = ""
) -> Iterator[tuple[str, Layer, Array]]:
    """Run `layer` on `x`, giving (name, layer, output) for each layer inside its Sequentials.

    A `Composite` is run as the Sequential that it composes; layers that are its attributes have
    their names, others their places.

    The outputs are those of one ``layer.forward(x, training=…, rng=…)``, random masks included.
    """
    stream: RandomStream | None = as_stream(rng) if training else None
    run: Layer = layer
    own: dict[int, str] = {}
    while type(run).forward is Composite.forward and isinstance(run, Composite):
        own |= {id(child): key for key, child in run.children()}
        run = run.composed()
    if not isinstance(run, Sequential):
        yield name, layer, run_forward(layer, x, training=training, rng=stream)[0]
        return
    for index, child in enumerate(run.layers):
        key = own.get(id(child), str(index))
        for step in named_outputs(
            child, x, training=training, rng=stream, name=f"{name}.{key}".lstrip(".")
        ):
            yield step
            x = step[2]


trace = named_outputs  # its earlier name
