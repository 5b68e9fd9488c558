"""Layers that are one operation, and chains of them, each one call of the primitive `chain`."""

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
        An operation of `xbp.primitives`, which returns y and the gradients.
    read : tuple of Parameter
        Parameters that the gradients read; these must not change between forward and backward.
    added : tuple of Parameter or None
        Parameters that are only added, such as a bias; None for a missing one.
    options : mapping
        Further arguments of the primitive, by name.
    """

    primitive: Any
    read: tuple[Parameter, ...] = ()
    added: tuple[Parameter | None, ...] = ()
    options: Mapping[str, Any] = {}


class OperationLayer(Layer):
    """A layer that is one operation: it defines `operation` and `output_shape`, not `forward`.

    In a `Sequential` neighbouring operation layers are one call of `xbp.primitives.chain`, so that
    an accelerator can fuse them. A subclass with a `forward` or `__call__` of its own is called
    like any other layer.

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
        """The operation with the current parameters and options."""
        msg = f"{type(self).__name__} has no operation; define operation(self) -> nn.Operation"
        raise NotImplementedError(msg)

    def output_shape(self, shape: Shape) -> Shape:
        """The output's shape for an input's shape, in which None is an unknown size.

        Raises
        ------
        InputError
            The input's shape does not fit.
        """
        msg = f"{type(self).__name__} has no output_shape; define output_shape(self, shape)"
        raise NotImplementedError(msg)

    def forward(
        self, x: Array, *, training: bool = False, rng: Rng = None
    ) -> tuple[Array, Backward]:
        xp = self.check_input(x)
        self.output_shape(x.shape)  # for its check of the shape
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
    """Append the data of an operation's parameters, and the receivers of their gradients."""
    for parameter in read:
        array, take = parameter.lend()
        arrays.append(array)
        takes.append(take)
    for offset in added:
        arrays.append(None if offset is None else offset.data)
        takes.append(None if offset is None else offset.add_grad)


def is_operation(layer: Layer) -> TypeGuard[OperationLayer]:
    """Whether a layer is an `OperationLayer` whose forward and call are not overridden."""
    kind = type(layer)
    return kind.forward is OperationLayer.forward and not (
        kind.__call__ is not Layer.__call__
        or kind.check_input is not Layer.check_input
        or kind.check_gradient is not Layer.check_gradient
        or "forward" in vars(layer)
    )


class OperationChain:
    """Neighbouring operation layers, run as one call of the primitive `chain`.

    Operations are cached until a layer changes (`holds`), the check of an input's shape for each
    shape. Parameters' data are read in each call.

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
        self.learning = [  # from the last on, the order of `chain`'s gradients
            (index, read, added)
            for index, (_, read, added, _) in reversed(list(enumerate(said)))
            if read or added
        ]
        self.fitting: set[Any] = set()  # shapes of x

    def holds(self) -> bool:
        """Whether all layers are unchanged, as far as their attributes show."""
        try:
            for layer, kind, state in self.states:
                if type(layer) is not kind or vars(layer) != state:
                    return False
        except ValueError:  # a new attribute that is an array
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
        """The result of the layers' forwards, one after the other."""
        xp, arrays, takes = self._lent(x)
        y, gradients = chain(x, self.operations, arrays)
        check = partial(self.layers[-1].check_gradient, xp, shape=y.shape)
        return y, TwoPartBackward(gradients, *takes, check=check)

    def infer(self, x: Array) -> Iterator[Array]:
        """The intermediate outputs and the last one; each is freed when the next is computed."""
        _, arrays, _ = self._lent(x)
        with on_device_of(x):
            for x in chain.outputs(x, self.operations, arrays):  # noqa: B020
                yield x

    def _lent(self, x: Array) -> tuple[Namespace, list[Any], list[Take]]:
        """The namespace of a checked `x`, the layers' arrays, and the receivers of gradients."""
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
        """Check the library, device, dtype and shape of `x` by each layer."""
        shape = x.shape
        for layer in self.layers:
            layer.check_input(x)
            shape = layer.output_shape(shape)
        if len(self.fitting) >= SHAPES:
            self.fitting.clear()
        self.fitting.add(x.shape)


SHAPES = 256
"""The most shapes of x that a chain caches as fitting."""


def _is_steady(value: Any) -> bool:
    """Whether a change of an attribute with this value replaces the value."""
    if type(value) is tuple:
        return all(type(item) in PLAIN for item in value)
    return type(value) in PLAIN or type(value) is Parameter
