"""The batches of a stream: brought to the host, and checked as whole sets are at the door."""

from __future__ import annotations

from copy import copy
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xbp.arguments import described, name_of
from xbp.backend import Array, library_of, to_numpy
from xbp.data.sources import as_pair
from xbp.errors import InputError
from xbp.nested import tree_leaves, tree_map
from xbp.nn import Loss
from xbp.nn.embedding import Embedding, check_tokens
from xbp.training.door.data import (
    check_targets,
    fitted,
    home_of,
    one_output,
    quantities_of,
    refuse_complex,
)
from xbp.training.door.pieces import check_single
from xbp.training.state import Pair, Pieces

Kind = tuple[Any, ...]


class Gate:
    """What each batch goes through, in the thread that reads it and on the host alone.

    The first batch of its shapes is shown to the model, which the thread cannot do: so that is done
    by `admit` or `meet`, in the thread that trains.

    Parameters
    ----------
    pieces : Pieces
    """

    def __init__(self, pieces: Pieces) -> None:
        self.pieces = pieces
        self.quantities: list[str] = []
        self.known: dict[Kind, Any] = {}  # the model's output for one sample, by shapes
        self.has_tokens = any(isinstance(layer, Embedding) for layer in pieces.model.tree())
        self.bounds: dict[Kind, tuple[Any, Any]] = {}  # of tokens, by shapes
        self.loss = _on_the_host(pieces.loss)

    def __call__(self, batch: Any) -> Pair:
        """The batch as (x, y) on the host; where its shapes are known, checked.

        Raises
        ------
        InputError
            It is no pair of arrays of numbers with the same number of samples, holds numbers beyond
            the model's dtype or complex ones, or its targets do not fit the loss or a metric.
        """
        x, y = as_pair(batch)
        x = tree_map(lambda part: fitted(self.pieces.model, part), x)
        for part in tree_leaves(y):
            refuse_complex("y", part)
        prediction = self.known.get(_kind(x))
        if prediction is not None:
            check_targets(self.loss, self.pieces.metrics.values(), prediction, y)
        return x, y

    def admit(self, batch: Any) -> Pair:
        """The first batch of all; sets `quantities`.

        Raises
        ------
        InputError
            It does not fit itself, the model, the loss or a metric.
        """
        pair = self(batch)
        prediction = self._show(pair)
        self.meet_tokens(pair[0])
        check_single(self.pieces.model, self.pieces.loss, prediction)
        self.quantities = quantities_of(self.pieces, prediction)
        return pair

    def knows(self, x: Any) -> bool:
        """Whether the model has been shown such inputs, in their shapes and with such tokens."""
        return _kind(x) in self.known and self._knows_tokens(x)

    def meet(self, pair: Pair) -> None:
        """Show the model a batch on its way to it, if that is unlike all before."""
        if _kind(pair[0]) not in self.known and len(tree_leaves(pair[0])[0]):
            self._show(pair)
        self.meet_tokens(pair[0])

    def meet_tokens(self, x: Any) -> None:
        """Refuse tokens that a layer of the model does not have, if they are beyond those known.

        The model is run on two samples. Where it takes the least and the greatest token at every
        place, no batch between them is looked at again; else each place has its own bounds.
        """
        if self._knows_tokens(x):
            return
        low, high = tree_map(_least, x), tree_map(_greatest, x)
        if (before := self.bounds.get(_kind(x))) is not None:
            low, high = tree_map(np.minimum, low, before[0]), tree_map(np.maximum, high, before[1])
        wide = tree_map(_least_everywhere, low), tree_map(_greatest_everywhere, high)
        try:
            self._check_tokens(*wide)
        except InputError:
            self._check_tokens(low, high)
        else:
            low, high = wide
        self.bounds[_kind(x)] = low, high

    def _check_tokens(self, low: Any, high: Any) -> None:
        ends = tree_map(lambda *pair: self._placed(np.stack(pair)), low, high)
        check_tokens(self.pieces.model, ends)

    def _knows_tokens(self, x: Any) -> bool:
        parts = tree_leaves(x)
        held = self.has_tokens and any(_holds_tokens(part) for part in parts)
        if not held or not len(parts[0]):
            return True
        bounds = self.bounds.get(_kind(x))
        if bounds is None:
            return False
        return all(
            bool((part.min(axis=0) >= low).all() and (part.max(axis=0) <= high).all())
            for part, low, high in zip(parts, *map(tree_leaves, bounds), strict=True)
            if _holds_tokens(part)
        )

    def inputs(self, x: Any) -> Any:
        """The x of a batch that is predicted from, on the host.

        Raises
        ------
        InputError
            There are no samples, or they hold no numbers that the model can take.
        """
        x = tree_map(lambda part: fitted(self.pieces.model, part), x)
        for part in tree_leaves(x):
            if part.ndim == 0 or len(part) == 0:
                msg = f"there is nothing to predict: a batch is {described(part)}"
                raise InputError(msg)
        return x

    def _show(self, pair: Pair) -> Any:
        """The model's output for the first sample, checked against the targets."""
        x, y = pair
        sample = tree_map(lambda part: self._placed(part[:1]), x)
        prediction = tree_map(to_numpy, one_output(self.pieces.model, sample))
        check_targets(self.loss, self.pieces.metrics.values(), prediction, y)
        self.known[_kind(x)] = prediction
        return prediction

    def _placed(self, host: NDArray[Any]) -> Array:
        return home_of(self.pieces.model).asarray(host)


def check_augmentation(pieces: Pieces, example: Pair) -> None:
    """Try the augmentation on two samples, and the model and the loss on what it makes of them.

    Raises
    ------
    InputError
        It is no function (x, y, *, rng) -> (x, y), or what it makes does not fit.
    """
    augment = pieces.augment
    if augment is None:
        return
    if isinstance(augment, type) or not callable(augment):
        msg = (
            "augment must be an augmentation, such as data.Flip(), or a function "
            f"(x, y, *, rng) -> (x, y), got {described(augment)}"
        )
        raise InputError(msg)
    backend = home_of(pieces.model)
    x, y = (tree_map(lambda part: backend.asarray(part[:2, ...]), part) for part in example)
    made = augment(x, y, rng=0)
    if not isinstance(made, tuple) or len(made) != 2:
        msg = f"augment must return (x, y), got {described(made)} from {name_of(augment)}"
        raise InputError(msg)
    check_targets(pieces.loss, (), one_output(pieces.model, made[0]), made[1])


def refuse_targets(y: Any) -> None:
    """Refuse targets beside a stream of batches.

    Raises
    ------
    InputError
    """
    if y is not None:
        msg = (
            f"a source or an iterable gives its targets itself, got y={described(y)} beside it; "
            "leave y out, and name what follows, as in epochs=3"
        )
        raise InputError(msg)


def _holds_tokens(x: NDArray[Any]) -> bool:
    return x.dtype.kind in "iu"


def _least(x: NDArray[Any]) -> NDArray[Any]:
    """The least token at each place; of other numbers, the first sample."""
    return np.asarray(x.min(axis=0) if _holds_tokens(x) else x[0])


def _greatest(x: NDArray[Any]) -> NDArray[Any]:
    return np.asarray(x.max(axis=0) if _holds_tokens(x) else x[0])


def _least_everywhere(x: NDArray[Any]) -> NDArray[Any]:
    return np.full_like(x, x.min()) if _holds_tokens(x) else x


def _greatest_everywhere(x: NDArray[Any]) -> NDArray[Any]:
    return np.full_like(x, x.max()) if _holds_tokens(x) else x


def _kind(x: Any) -> Kind:
    return tuple(part.shape[1:] for part in tree_leaves(x))


def _on_the_host(loss: Any) -> Any:
    """A loss whose arrays lie on the host, so that it can check targets there."""
    if not isinstance(loss, Loss):
        return loss
    twin = copy(loss)
    for name, value in vars(loss).items():
        if library_of(value) is not None and not isinstance(value, np.generic):
            setattr(twin, name, to_numpy(value))
    return twin
