"""Layers that are one operation, and runs of them, each one call of the primitive `chain`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple, TypeAlias, TypeGuard

from xbp.backend import Array, HostArray, Namespace, on_device_of
from xbp.nn.backward import Backward, Rng, TwoPartBackward
from xbp.nn.layer import Layer
from xbp.nn.parameter import Parameter
from xbp.nn.parts import PLAIN
from xbp.primitives.chain import chain

Shape: TypeAlias = "tuple[int, ...]"
Take: TypeAlias = "Callable[[Array], None] | None"


class Operation(NamedTuple):
    """y = primitive(x, *read, *added, **options).

    Attributes
    ----------
    primitive : Primitive
        An operation of `xbp.primitives`, which gives y and the gradients.
    read : tuple of Parameter
        Those that the gradients read: they must not change between forward and backward.
    added : tuple of Parameter or None
        Those that are only added, such as a bias; None where there is none.
    options : mapping
        What else the primitive takes, by name.
    """

    primitive: Any
    read: tuple[Parameter, ...] = ()
    added: tuple[Parameter | None, ...] = ()
    options: Mapping[str, Any] = {}


class OperationLayer(Layer):
    """A layer that is one operation: it says which, and for which shapes; `forward` is inherited.

    In a `Sequential` neighbours of this kind are one call of `xbp.primitives.chain`, so that an
    accelerator can do several in one pass over memory. A subclass that has a `forward` or a
    `__call__` of its own is called like any other layer.

    Examples
    --------
    >>> import numpy as np
    >>> from xbp import nn, primitives
    >>> class Half(nn.OperationLayer):  # every second row and column
    ...     def operation(self):
    ...         window = {"kernel_size": (1, 1), "stride": (2, 2)}
    ...         return nn.Operation(primitives.average_pool, options=window)
    ...
    ...     def output_shape(self, shape):
    ...         return (*shape[:2], -(-shape[2] // 2), -(-shape[3] // 2))
    >>> Half()(np.ones((2, 3, 8, 8))).shape
    (2, 3, 4, 4)
    """

    def operation(self) -> Operation:
        """The operation, as parameters and options are now."""
        msg = f"{type(self).__name__} has no operation; define operation(self) -> nn.Operation"
        raise NotImplementedError(msg)

    def output_shape(self, shape: Shape) -> Shape:
        """The shape of the output for an input of a shape; an InputError for one that does not fit.

        Sizes that are None are not known.
        """
        msg = f"{type(self).__name__} has no output_shape; define output_shape(self, shape)"
        raise NotImplementedError(msg)

    def forward(
        self, x: Array, *, training: bool = False, rng: Rng = None
    ) -> tuple[Array, Backward]:
        xp = self.check_input(x)
        self.output_shape(x.shape)  # refuses what does not fit
        primitive, read, added, options = self.operation()
        arrays: list[Array | None] = []
        takes: list[Take] = []
        lend(read, added, arrays, takes)
        y, gradients = primitive(x, *arrays, **options)
        check = partial(self.check_gradient, xp, shape=y.shape)
        return y, TwoPartBackward(gradients, *takes, check=check)


def lend(
    read: Iterable[Parameter],
    added: Iterable[Parameter | None],
    arrays: list[Array | None],
    takes: list[Take],
) -> None:
    """Append the data of an operation's parameters, and what their gradients go to."""
    for parameter in read:
        array, take = parameter.lend()
        arrays.append(array)
        takes.append(take)
    for offset in added:
        arrays.append(None if offset is None else offset.data)
        takes.append(None if offset is None else offset.add_grad)


def is_operation(layer: Layer) -> TypeGuard[OperationLayer]:
    """Whether a layer is its operation and nothing else: nobody has given it another way to run."""
    kind = type(layer)
    return kind.forward is OperationLayer.forward and not (
        kind.__call__ is not Layer.__call__
        or kind.check_input is not Layer.check_input
        or kind.check_gradient is not Layer.check_gradient
        or "forward" in vars(layer)
    )


class Run:
    """Neighbours that are operations: one call of the primitive `chain`.

    What layers say of themselves is asked once, and again when one of them has changed (`holds`);
    what they say of a shape, once for each shape. A parameter's data are as they are in each call.

    Parameters
    ----------
    layers : list of OperationLayer
    """

    def __init__(self, layers: list[OperationLayer]) -> None:
        self.layers = layers
        self.states = [(layer, type(layer), dict(vars(layer))) for layer in layers]
        kinds: set[Any] = {*map(type, layers)}
        self.kinds = [(it, it.forward, it.__call__, it.operation) for it in kinds]
        self.steady = all(_is_steady(value) for _, _, it in self.states for value in it.values())
        said = [layer.operation() for layer in layers]
        self.operations = tuple((it, tuple(options.items())) for it, _, _, options in said)
        self.learning = [  # the last one first, as `chain` has the gradients
            (index, read, added)
            for index, (_, read, added, _) in reversed(list(enumerate(said)))
            if read or added
        ]
        self.fitting: set[Any] = set()  # shapes of x

    def holds(self) -> bool:
        """Whether all layers are as they were, as far as can be seen."""
        try:
            for layer, kind, state in self.states:
                if type(layer) is not kind or vars(layer) != state:
                    return False
        except ValueError:  # an array, which was not there before
            return False
        for kind, forward, call, operation in self.kinds:
            if (
                kind.forward is not forward
                or kind.__call__ is not call
                or kind.operation is not operation
            ):
                return False
        return self.steady

    def forward(self, x: Array) -> tuple[Array, Backward]:
        """What the forward of the layers, one after the other, returns."""
        xp, arrays, takes = self._lent(x)
        y, gradients = chain(x, self.operations, arrays)
        check = partial(self.layers[-1].check_gradient, xp, shape=y.shape)
        return y, TwoPartBackward(gradients, *takes, check=check)

    def infer(self, x: Array) -> Iterator[Array]:
        """The outputs on the way to the last one: each is let go as the next one comes."""
        _, arrays, _ = self._lent(x)
        with on_device_of(x):
            for x in chain.outputs(x, self.operations, arrays):  # noqa: B020
                yield x

    def _lent(self, x: Array) -> tuple[Namespace, list[Any], list[Take]]:
        """The namespace of `x`, if it fits all layers, their arrays, and what gradients go to."""
        xp = self.layers[0].check_input(x)
        host, dtype, fits = type(x) is HostArray, x.dtype, x.shape in self.fitting
        arrays: list[Any] = [()] * len(self.layers)
        takes: list[Take] = []
        for index, read, added in self.learning:
            own: list[Array | None] = []
            lend(read, added, own, takes)
            for array in own:
                if array is not None and not (
                    host and type(array) is HostArray and array.dtype == dtype
                ):
                    fits = False
            arrays[index] = own
        if not fits:
            self._check(x)
        return xp, arrays, takes

    def _check(self, x: Array) -> None:
        """Let each layer refuse an `x` that it cannot take: library, device, dtype or shape."""
        shape = x.shape
        for layer in self.layers:
            layer.check_input(x)
            shape = layer.output_shape(shape)
        if len(self.fitting) >= SHAPES:
            self.fitting.clear()
        self.fitting.add(x.shape)


SHAPES = 256
"""Shapes of x that a run remembers to fit."""


def _is_steady(value: Any) -> bool:
    """Whether an attribute is replaced when it changes, and not changed in place."""
    if type(value) is tuple:
        return all(type(item) in PLAIN for item in value)
    return type(value) in PLAIN or type(value) is Parameter
