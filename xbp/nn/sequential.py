"""Layers one after the other, which is the chain rule one after the other."""

from __future__ import annotations

from collections.abc import Iterator

from xbp.backend import Array
from xbp.errors import InputError
from xbp.nn.backward import (
    Backward,
    Rng,
    TwoPartBackward,
    check_arguments,
    for_parameters,
    not_both,
    run_forward,
)
from xbp.nn.fusion import fused
from xbp.nn.layer import Layer
from xbp.random import Stream, as_stream


class Sequential(Layer):
    """y = f_n(… f_2(f_1(x))); backward runs through the same layers from the last to the first.

    Parameters
    ----------
    *layers : Layer
        Named ``"0"``, ``"1"``, … in state dicts, as in PyTorch.

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
                msg = f"Sequential takes layers; argument {index} is a {kind}"
                raise InputError(msg)
        self.layers = layers

    def forward(
        self, x: Array, *, training: bool = False, rng: Rng = None
    ) -> tuple[Array, Backward]:
        rng = as_stream(rng) if training else None  # one stream: each layer draws its own part
        backwards = []
        for layer in fused(self.layers):  # `run_forward`, without a call
            try:
                result = layer.forward(x, training=training, rng=rng)
            except TypeError:
                check_arguments(layer)
                raise
            if not isinstance(result, tuple) or len(result) != 2 or not callable(result[1]):
                raise not_both(layer, "forward", "output, backward", result)
            x, backward = result
            backwards.append(backward)

        def gradients(dy: Array, wants_dx: bool) -> tuple[Array]:
            for backward in reversed(backwards[1:]):
                dy = backward(dy)
            for first in backwards[:1]:
                dy = first(dy) if wants_dx else for_parameters(first)(dy)
            return (dy,)

        return x, TwoPartBackward(gradients)

    def __call__(self, x: Array) -> Array:
        for layer in fused(
            self.layers
        ):  # without the closures, each layer's memory is free at once
            x = layer(x)
        return x

    def children(self) -> Iterator[tuple[str, Layer]]:
        """``0``, ``1``, …; and the other layers that a subclass may have, by their own names."""
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
        """A layer; or for a slice a Sequential of the same layers, sharing their parameters."""
        if isinstance(index, slice):
            return Sequential(*self.layers[index])
        return self.layers[index]

    def __repr__(self) -> str:
        lines = [f"  ({name}): {layer!r}".replace("\n", "\n  ") for name, layer in self.children()]
        return "\n".join([f"{type(self).__name__}(", *lines, ")"])


def trace(
    layer: Layer, x: Array, *, training: bool = False, rng: Rng = None, name: str = ""
) -> Iterator[tuple[str, Layer, Array]]:
    """Run `layer` on `x`, giving (name, layer, output) for each layer inside its Sequentials.

    The outputs are those of one ``layer.forward(x, training=…, rng=…)``, random masks included.
    """
    stream: Stream | None = as_stream(rng) if training else None
    if not isinstance(layer, Sequential):
        yield name, layer, run_forward(layer, x, training=training, rng=stream)[0]
        return
    for key, child in enumerate(layer.layers):
        for step in trace(
            child, x, training=training, rng=stream, name=f"{name}.{key}".lstrip(".")
        ):
            yield step
            x = step[2]
