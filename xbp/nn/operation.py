"""Layers that are one operation, and chains of them, each one call of the primitive `chain`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple, TypeAlias, TypeGuard

from xbp.backend import HOST, Array, Namespace, on_device_of
from xbp.nn.backward import Backward, Rng, TwoPartBackward
from xbp.nn.layer import Layer
from xbp.nn.lender import Arrays, ChainBackward, Lender, once
from xbp.nn.parameter import Buffer, Parameter, lent
from xbp.nn.parts import PLAIN
from xbp.primitives.chain import chain

Shape: TypeAlias = "tuple[int, ...]"
Take: TypeAlias = "Callable[[Array], None] | None"


class Statistics(NamedTuple):
    """What an operation keeps of the batches in training, for inference.

    Its gradients return one thing more after those of the parameters: what `commit` takes.

    Attributes
    ----------
    kept : tuple of Buffer or None
        Arguments after the parameters: in inference arrays, in training None.
    commit : callable
        Called once for each forward in training, by its first backward.
    options : mapping
        Further arguments in training, by name.
    """

    kept: tuple[Parameter | None, ...]
    commit: Callable[[Any], None]
    options: Mapping[str, Any] = {}


class Operation(NamedTuple):
    """y = primitive(x, *read, *added, **options).

    Attributes
    ----------
    primitive : Primitive
        An operation of `xbp.primitives`, which returns y and the gradients.
    read : tuple of Parameter or None
        Parameters that the gradients read; these must not change between forward and backward.
    added : tuple of Parameter or None
        Parameters that are only added, such as a bias; None for a missing one.
    options : mapping
        Further arguments of the primitive, by name.
    statistics : Statistics, optional
        Of the batch.
    """

    primitive: Any
    read: tuple[Parameter | None, ...] = ()
    added: tuple[Parameter | None, ...] = ()
    options: Mapping[str, Any] = {}
    statistics: Statistics | None = None

    def options_in(self, training: bool) -> Mapping[str, Any]:
        """The options in training or inference."""
        if training and self.statistics is not None:
            return {**self.options, **self.statistics.options}
        return self.options


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

    @property
    def alone(self) -> bool:
        """Whether it is called by itself, with none of its neighbours."""
        return False

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

    def check_batch(self, shape: Shape) -> None:
        """Refuse, in training, an input's shape that fits but has too few samples.

        Raises
        ------
        InputError
        """

    def forward(
        self, x: Array, *, training: bool = False, rng: Rng = None
    ) -> tuple[Array, Backward]:
        xp = self.check_input(x)
        self.output_shape(x.shape)  # for its check of the shape
        if training:
            self.check_batch(x.shape)
        operation = self.operation()
        arrays: list[Array | None] = []
        takes: list[Take] = []
        lend(operation, training, arrays, takes)
        y, gradients = operation.primitive(x, *arrays, **operation.options_in(training))
        check = partial(self.check_gradient, xp, shape=y.shape)
        return y, TwoPartBackward(gradients, *takes, check=check)


def lend(
    operation: Operation, training: bool, arrays: list[Array | None], takes: list[Take]
) -> None:
    """Append an operation's arrays, and the receivers of what its gradients return for them."""
    _, read, added, _, statistics = operation
    for parameter in read:
        array, take = lent(parameter)
        arrays.append(array)
        takes.append(take)
    for offset in added:
        arrays.append(None if offset is None else offset.data)
        takes.append(None if offset is None else offset.add_grad)
    if statistics is not None:
        kept = statistics.kept
        arrays += [None if training or buffer is None else buffer.data for buffer in kept]
        takes.append(once(statistics.commit) if training else None)


def is_operation(layer: Layer) -> TypeGuard[OperationLayer]:
    """Whether a layer may join others: its forward and call are those of `OperationLayer`."""
    kind = type(layer)
    return kind.forward is OperationLayer.forward and not (
        kind.__call__ is not Layer.__call__
        or kind.check_input is not Layer.check_input
        or kind.check_gradient is not Layer.check_gradient
        or "forward" in vars(layer)
        or layer.alone  # type: ignore[attr-defined]
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
        self.operations = [  # in inference, in training
            tuple((it.primitive, tuple(it.options_in(training).items())) for it in said)
            for training in (False, True)
        ]
        self.lenders = [Lender(said, training) for training in (False, True)]
        self.fitting: set[Any] = set()  # shapes of x, in inference or in training

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

    def forward(self, x: Array, training: bool = False) -> tuple[Array, Backward]:
        """The result of the layers' forwards, one after the other."""
        xp, arrays = self.lent(x, training)
        y, gradients = chain(x, self.operations[training], arrays)
        return y, ChainBackward(gradients, self.lenders[training], self.layers, xp, y.shape)

    def infer(self, x: Array) -> Iterator[Array]:
        """The intermediate outputs and the last one; each is freed when the next is computed."""
        _, arrays = self.lent(x, False)
        with on_device_of(x):
            for x in chain.outputs(x, self.operations[False], arrays):  # noqa: B020
                yield x

    def lent(self, x: Array, training: bool) -> tuple[Namespace, Arrays]:
        """The namespace of a checked `x`, and the arrays of each operation."""
        arrays, beside = self.lenders[training].lend(x)
        if beside and x.dtype.kind == "f" and (x.shape, training) in self.fitting:
            return HOST, arrays
        xp = self.layers[0].check_input(x)
        self._check(x, training)
        return xp, arrays

    def output_shape(self, shape: Shape) -> Shape:
        """The output's shape for an input's shape."""
        for layer in self.layers:
            shape = layer.output_shape(shape)
        return shape

    def _check(self, x: Array, training: bool) -> None:
        """Check the library, device, dtype and shape of `x` by each layer."""
        shape = x.shape
        for layer in self.layers:
            layer.check_input(x)
            following = layer.output_shape(shape)
            if training:
                layer.check_batch(shape)
            shape = following
        if len(self.fitting) >= SHAPES:
            self.fitting.clear()
        self.fitting.add((x.shape, training))


SHAPES = 256
"""The most shapes of x that a chain caches as fitting."""


def _is_steady(value: Any) -> bool:
    """Whether a change of an attribute with this value replaces the value."""
    if type(value) is tuple:
        return all(type(item) in PLAIN for item in value)
    return type(value) in PLAIN or type(value) is Parameter or type(value) is Buffer
