"""A layer defined by an arrangement of other layers."""

from __future__ import annotations

import operator
import weakref
from collections.abc import Iterator
from typing import Any

from xbp.arguments import described
from xbp.backend import Array
from xbp.errors import InputError
from xbp.nn.backward import Backward, Rng, without_backward
from xbp.nn.layer import Layer


class Composite(Layer):
    """A layer that is an arrangement of its own layers, given by `compose`.

    `compose` sees no array: the arrangement hands on `training` and `rng`, and chains the
    backwards. Keys of state dicts are the names of the attributes, a layer may be used twice, and
    neighbours are fused as in a Sequential. For anything that `Sequential`, `Residual`, `Parallel`
    and `Concatenate` cannot express, write a `forward` with its backward: see `Layer`.

    Examples
    --------
    The block of a residual network, with PyTorch's names (He et al. 2016):

    >>> from xbp import nn
    >>> class BasicBlock(nn.Composite):
    ...     def __init__(self, channels, *, rng):
    ...         self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, rng=rng)
    ...         self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, rng=rng)
    ...
    ...     def compose(self):
    ...         body = nn.Sequential(self.conv1, nn.ReLU(), self.conv2)
    ...         return nn.Sequential(nn.Residual(body), nn.ReLU())
    >>> [name for name, _ in BasicBlock(8, rng=0).named_parameters()]
    ['conv1.weight', 'conv1.bias', 'conv2.weight', 'conv2.bias']

    Two branches of one input:

    >>> class TwoBranches(nn.Composite):
    ...     def __init__(self, *, rng):
    ...         self.fine = nn.Linear(4, 3, rng=rng)
    ...         self.coarse = nn.Linear(4, 2, rng=rng)
    ...         self.head = nn.Linear(5, 1, rng=rng)
    ...
    ...     def compose(self):
    ...         both = nn.Parallel(self.fine, nn.Sequential(self.coarse, nn.Tanh()))
    ...         return nn.Sequential(both, nn.Concatenate(), self.head)
    """

    def compose(self) -> Layer:
        """The arrangement of the current attributes; called again when one of them has changed.

        Layers with parameters are attributes of this layer; those without may be made here.
        """
        msg = f"{type(self).__name__} has no compose; define compose(self) -> nn.Layer"
        raise NotImplementedError(msg)

    def composed(self) -> Layer:
        """The cached arrangement, or a new one if an attribute has changed since.

        Raises
        ------
        InputError
            The arrangement is no layer, or has parameters that this layer lacks.
        """
        made_of = list(_held(self))
        known = _arrangements.get(self)
        if known is not None and len(known[0]) == len(made_of):
            if all(map(operator.is_, known[0], made_of)):
                return known[1]
        layer = self.compose()
        self._check(layer)
        _arrangements[self] = (made_of, layer)
        return layer

    def _check(self, layer: Any) -> None:
        kind = type(self).__name__
        if not isinstance(layer, Layer) or layer is self:
            what = "itself" if layer is self else described(layer)
            msg = f"{kind}.compose must return a layer of its own layers, it returned {what}"
            raise InputError(msg)
        own = {id(parameter) for _, parameter in self._all_names("")}
        for name, parameter in layer._all_names(""):
            if id(parameter) not in own:
                msg = (
                    f"{kind}.compose makes a layer with parameters ({name!r}), which would not be "
                    f"found, and made anew; make it in __init__, as an attribute of {kind}"
                )
                raise InputError(msg)

    def forward(
        self, x: Array, *, training: bool = False, rng: Rng = None
    ) -> tuple[Array, Backward]:
        return self.composed().forward(x, training=training, rng=rng)

    @without_backward
    def __call__(self, x: Array) -> Array:
        return self.composed()(x)

    def __repr__(self) -> str:
        lines = [f"  ({name}): {layer!r}".replace("\n", "\n  ") for name, layer in self.children()]
        return "\n".join([f"{type(self).__name__}(", *lines, ")"])


_arrangements: weakref.WeakKeyDictionary[Composite, tuple[list[Any], Layer]]
_arrangements = weakref.WeakKeyDictionary()


def _held(layer: Composite) -> Iterator[Any]:
    """The attributes and, of lists and dicts, the members, which may change in place."""
    for value in vars(layer).values():
        yield value
        if isinstance(value, list):
            yield from value
        elif isinstance(value, dict):
            yield from value.values()
