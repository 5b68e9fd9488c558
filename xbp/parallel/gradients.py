"""The step of a model on several ranks: one sum over ranks of gradients and losses.

A batch of N samples is split: rank r of n takes the rows r::n. With a rank's loss Lᵢ, a mean over
what it counts, wᵢ (its samples, unless the loss says otherwise by its `denominator`),

    L = Σ wᵢ Lᵢ / Σ wᵢ,     ∂L/∂θ = Σ wᵢ ∂Lᵢ/∂θ / Σ wᵢ.

The factor wᵢ is applied to ∂Lᵢ/∂y, *before* the backward (`weighted`): a layer that sums over
the batch of all ranks, such as batch norm, then adds derivatives of the same Σ wᵢ Lᵢ. The sum and
the division follow after it (`reduce_gradients`). A rank without rows computes with empty
arrays: its wᵢ and all its sums are 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import accumulate, groupby, pairwise
from typing import Any, Protocol

from xbp.backend import (
    Array,
    array_namespace,
    check_beside,
    library_of,
    on_device_of,
    on_host,
    to_numpy,
)
from xbp.errors import InputError
from xbp.nested import first_of, tree_map
from xbp.parallel.groups import Group, Joined, sum_parts


class Learned(Protocol):
    """An object with a gradient, such as a `Parameter`."""

    data: Array
    grad: Array | None


def weighted(loss: Any, prediction: Any, target: Any) -> tuple[Array, Any, Any]:
    """The loss of this rank's share, its gradient, and its weight wᵢ, by which both are multiplied.

    Parameters
    ----------
    loss : callable ``(prediction, target) -> (value, gradient)``
        A mean over the samples unless it says otherwise, as `xbp.nn.Loss`, by an attribute
        ``reduction = "sum"`` or a method `denominator`.
    prediction : array (nᵢ, …), or a tuple of such arrays
        nᵢ may be 0.
    target : array
        The target for those samples.

    Returns
    -------
    value : array, 0-d
        wᵢ Lᵢ.
    gradient : as `prediction`
        wᵢ ∂Lᵢ/∂y, which goes to the backward.
    weight : int, 0-d array or None
        wᵢ; None if the loss is a sum, which nothing divides.

    Examples
    --------
    >>> import numpy as np
    >>> from xbp import nn
    >>> value, gradient, weight = weighted(nn.MSELoss(), np.array([3.0, 1.0]), np.zeros(2))
    >>> float(value), gradient.tolist(), weight
    (10.0, [6.0, 2.0], 2)
    """
    first = first_of(prediction)
    summed = getattr(loss, "reduction", "mean") == "sum"
    rows: int = first.shape[0]
    if rows == 0:
        with on_device_of(first):
            xp = array_namespace(first)
            nothing = xp.zeros((), dtype=first.dtype, device=first.device)
            return nothing, tree_map(xp.zeros_like, prediction), None if summed else 0
    value, gradient = loss(prediction, target)
    if summed:
        return value, gradient, None
    weight: Any = loss.denominator(prediction, target) if hasattr(loss, "denominator") else None
    weight = rows if weight is None else weight
    with on_device_of(first):
        return weight * value, tree_map(lambda g: times(weight, g), gradient), weight


def reduce_gradients(
    parameters: Iterable[Learned], group: Group, value: Array, weight: Any = None
) -> Array:
    """Make each gradient, on every rank, that of the whole batch; return the loss of it.

    All ranks call it, between the backward and the optimizer's step. Gradients of one dtype travel
    as one array, in one call: θ's of all layers, then Σ wᵢ Lᵢ, Σ wᵢ, and which parameters have a
    gradient. One that has none on any rank keeps none. On a device, where reading that would wait,
    ranks must agree on it; where they do not, the loss and all gradients become nan.

    Parameters
    ----------
    parameters : iterable of Parameter
        The same on every rank, in the same order.
    group : Group
    value, weight
        Of `weighted`, whose gradient went to the backward.

    Returns
    -------
    value : array, 0-d
        L, the same bits on every rank. Where nothing counts (Σ wᵢ = 0) it is 0, as all gradients.

    Raises
    ------
    InputError
        There are no parameters.
    BackendError
        Value and parameters are not all on one device.

    Examples
    --------
    >>> import numpy as np
    >>> from xbp import nn
    >>> from xbp.parallel import Alone
    >>> p = nn.Parameter(np.zeros(2))
    >>> p.add_grad(np.array([6.0, 2.0]))  # two samples' gradients, weighted by 2
    >>> float(reduce_gradients([p], Alone(), np.asarray(10.0), 2)), p.grad.tolist()
    (5.0, [3.0, 1.0])
    """
    owned = list(parameters)
    if not owned:
        msg = "there are no parameters whose gradients could be reduced; give model.parameters()"
        raise InputError(msg)
    for p in owned:
        check_beside("reduce_gradients", "a parameter", p.data, "the loss is", value)
    return reduce_step(owned, group, value, weight)[0]


def reduce_step(
    owned: Sequence[Learned],
    group: Group,
    value: Array,
    weight: Any,
    *,
    wish: bool = False,
    room: Room | None = None,
) -> tuple[Array, Array, Array]:
    """As `reduce_gradients`, which checks the arguments, with more numbers in the same call.

    Parameters
    ----------
    wish : bool
        What the other ranks hear in the third result.
    room : Room, optional
        Arrays from earlier calls. Gradients lie in them until the next one.

    Returns
    -------
    value : array, 0-d
        In the widest dtype of the parameters, as the loss may have another one on a rank without
        rows.
    weight : array, 0-d
        Σ wᵢ; where the loss is a sum, the number of ranks.
    wishes : array, 0-d
        The number of ranks with a `wish`.
    """
    if isinstance(group, Joined):
        group.count_step()
    with on_device_of(owned[0].data):
        return _reduce(owned, group, value, weight, wish, Room() if room is None else room)


class Flat:
    """The array in which gradients of one dtype travel: one after the other, then a tail.

    Parameters
    ----------
    xp : namespace
    like : array
        On the device of the gradients.
    dtype : dtype
    members : dict of int to tuple of int
        Shapes, by the indices of parameters.
    tail : int
        The number of entries after the gradients.
    """

    def __init__(
        self, xp: Any, like: Array, dtype: Any, members: dict[int, tuple[int, ...]], tail: int
    ) -> None:
        sizes = [math.prod(shape) for shape in members.values()]
        ends = [*accumulate(sizes, initial=0), sum(sizes) + tail]
        self.places = [slice(start, end) for start, end in pairwise(ends)]
        """Of the gradients and the tail."""
        self.members, self.dtype = list(members), dtype
        self.whole = xp.zeros(ends[-1], dtype=dtype, device=like.device)
        self.tail = xp.zeros(tail, dtype=dtype, device=like.device)
        self.views = [
            xp.reshape(self.whole[part], shape)
            for part, shape in zip(self.places, members.values(), strict=False)
        ]


class Room:
    """The arrays in which gradients travel, kept from step to step on the host.

    There, fresh memory costs more than the sum of a small model.
    """

    def __init__(self) -> None:
        self.kinds: list[Any] = []
        self.flats: list[Flat] = []

    def flats_for(self, owned: Sequence[Learned], value: Array) -> list[Flat]:
        """An array for each dtype, first the one that tells value, weight, wish and presence."""
        kinds = [(p.data.dtype, p.data.shape) for p in owned]
        here = on_host(value)
        if here and self.flats and kinds == self.kinds:
            return self.flats
        xp, like = array_namespace(value), owned[0].data
        dtypes = list(dict.fromkeys(dtype for dtype, _ in kinds))
        real = [dtype for dtype in dtypes if xp.isdtype(dtype, "real floating")]
        telling = max(real, key=lambda dtype: xp.finfo(dtype).bits, default=value.dtype)
        flats: list[Flat] = []
        for dtype in dict.fromkeys([telling, *dtypes]):
            members = {k: tuple(shape) for k, (own, shape) in enumerate(kinds) if own == dtype}
            tail = 0 if flats else TOLD + len(owned)
            flats.append(Flat(xp, like, dtype, members, tail))
        if here:
            self.kinds, self.flats = kinds, flats
        return flats


TOLD = 3
"""The entries of a tail before those about presence: Σ wᵢ Lᵢ, Σ wᵢ, wishes."""


def _reduce(
    owned: Sequence[Learned], group: Group, value: Array, weight: Any, wish: bool, room: Room
) -> tuple[Array, Array, Array]:
    xp, here, flats = array_namespace(value), on_host(value), room.flats_for(owned, value)
    present = [p.grad is not None for p in owned]
    own = flats[0].tail
    own[0:1] = _entry(xp, value, own.dtype)
    own[1:2] = _entry(xp, 1 if weight is None else weight, own.dtype)
    own[2:3] = float(wish)
    for there, run in groupby(range(len(owned)), key=present.__getitem__):
        places = list(run)
        own[TOLD + places[0] : TOLD + places[-1] + 1] = float(there)
    for flat in flats:
        parts = [*(owned[k].grad for k in flat.members), flat.tail]
        sum_parts(group, flat.whole, list(zip(flat.places, parts, strict=True)))
    told = flats[0].whole[flats[0].places[-1]]
    value, total, wishes = (xp.asarray(told[k], copy=True) for k in range(TOLD))
    factor: Any = None
    if weight is not None:
        factor = 1 / xp.where(total > 0, total, xp.ones_like(total))
    if here:
        present = (to_numpy(told[TOLD:]) > 0).tolist()
    else:
        agreed = xp.all(told[TOLD:] == group.size * own[TOLD:])
        factor = xp.ones_like(total) if factor is None else factor
        factor = xp.where(agreed, factor, xp.nan * factor)
    if factor is not None:
        value = factor * value
    for flat in flats:
        if factor is not None:
            flat.whole *= xp.astype(xp.asarray(factor), flat.dtype)
        for k, view in zip(flat.members, flat.views, strict=True):
            if present[k]:
                owned[k].grad = view
    return value, total, wishes


def _entry(xp: Any, number: Any, dtype: Any) -> Any:
    """A number or a 0-d array in a form that can be assigned to a slice of length 1."""
    if library_of(number) is None or on_host(number):
        return float(number)
    return xp.reshape(xp.astype(xp.asarray(number), dtype), (1,))


def times(weight: Any, gradient: Array) -> Array:
    """A number, or a 0-d array of any dtype, times a gradient, in its dtype."""
    if library_of(weight) is None:
        return weight * gradient
    xp = array_namespace(gradient)
    return xp.astype(xp.asarray(weight), gradient.dtype) * gradient
