"""Parameters of several operations: lent to each forward, with gradients from its backward."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from xbp.backend import Array, HostArray, Namespace
from xbp.nn.backward import TwoPartBackward
from xbp.nn.layer import Layer
from xbp.nn.parameter import Parameter

Commit: TypeAlias = "Callable[[Any], None]"
Receiver: TypeAlias = "Parameter | Commit | None"
Arrays: TypeAlias = "Sequence[Sequence[Array | None]]"

_data, _version = map(operator.attrgetter, ("data", "version"))


class Lender:
    """The parameters of a chain's operations, in inference or in training.

    Parameters
    ----------
    operations : sequence of Operation
    training : bool

    Attributes
    ----------
    read : list of Parameter
        Those that must not change between forward and backward.
    """

    def __init__(self, operations: Sequence[Any], training: bool) -> None:
        self.given: list[tuple[Parameter | None, ...]] = []  # to each operation
        self.read: list[Parameter] = []
        self._receivers: list[Receiver] = []  # from the last operation on
        self.once: list[int] = []  # indices of those that are called once for each forward
        for _, read, added, _, statistics in operations:
            kept = () if statistics is None else statistics.kept
            self.given.append((*read, *added, *((None,) * len(kept) if training else kept)))
            self.read += (parameter for parameter in read if parameter is not None)
        for _, read, added, _, statistics in reversed(operations):
            self._receivers += (*read, *added)
            if statistics is not None:
                self._receivers.append(statistics.commit if training else None)
                self.once += [len(self._receivers) - 1] * training
        self.held = [parameter for own in self.given for parameter in own if parameter is not None]
        self._nothing: tuple[list[Array], Arrays, Any] = (
            [None] * len(self.held),
            [()] * len(operations),
            None,
        )
        self._lent: tuple[list[Array], Arrays, Any] = self._nothing

    def lend(self, x: Array) -> tuple[Arrays, bool]:
        """The arrays for each operation, and whether they are known to be beside `x` on the host.

        The arrays of the last call serve again where no parameter has a new one.
        """
        data = list(map(_data, self.held))
        before, arrays, dtype = self._lent
        if all(map(operator.is_, data, before)):
            return arrays, type(x) is HostArray and (dtype is None or dtype == x.dtype)
        arrays = [tuple(None if one is None else one.data for one in own) for own in self.given]
        dtypes = {array.dtype if type(array) is HostArray else None for array in data}
        dtype = dtypes.pop()
        if dtypes or dtype is None:
            self._lent = self._nothing  # keeps no array alive
            return arrays, False
        self._lent = (data, arrays, dtype)
        return arrays, type(x) is HostArray and dtype == x.dtype

    def versions(self) -> list[int]:
        """The versions of the parameters in `read`."""
        return list(map(_version, self.read))

    def receivers(self) -> list[Receiver]:
        """The receivers of the gradients of a forward."""
        if not self.once:
            return self._receivers
        receivers = list(self._receivers)
        for index in self.once:
            receivers[index] = once(receivers[index])
        return receivers


class ChainBackward(TwoPartBackward):
    """The backward of a chain of operations.

    Parameters
    ----------
    gradients : callable
        As for `TwoPartBackward`.
    lender : Lender
    layers : list of Layer
    xp : Namespace
        That of the output.
    shape : tuple of int
        The output's.
    """

    __slots__ = ("_layers", "_lender", "_receivers", "_shape", "_versions", "_xp")

    def __init__(
        self,
        gradients: Callable[[Array, bool], tuple[Any, ...]],
        lender: Lender,
        layers: Sequence[Layer],
        xp: Namespace,
        shape: tuple[int, ...],
    ) -> None:
        self._gradients, self._lender, self._layers = gradients, lender, layers
        self._receivers, self._versions = lender.receivers(), lender.versions()
        self._xp, self._shape = xp, shape

    def _add(self, dy: Array, wants_dx: bool) -> Array:
        layers, lender = self._layers, self._lender
        layers[-1].check_gradient(self._xp, dy, self._shape, chained=layers)
        if lender.versions() != self._versions:
            for parameter, version in zip(lender.read, self._versions, strict=True):
                parameter.check_unchanged(version)
        dx, *found = self._gradients(dy, wants_dx)
        give(self._receivers, found)
        return dx


def give(receivers: Sequence[Receiver], found: Sequence[Any]) -> None:
    """Give each receiver what the gradients of a chain returned for it."""
    for receiver, gradient in zip(receivers, found, strict=True):
        if isinstance(receiver, Parameter):
            receiver.add_grad(gradient)
        elif receiver is not None:
            receiver(gradient)


def once(commit: Any) -> Commit:
    """`commit`, limited to a single call; later calls do nothing."""
    pending = [commit]

    def first(found: Any) -> None:
        while pending:
            pending.pop()(found)

    return first
