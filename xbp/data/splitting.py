"""Random splits of sources, reproducible by their seed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from xbp.arguments import described, number
from xbp.backend import as_numbers
from xbp.data.sources import Arrays, Source, Subset, check_source
from xbp.errors import InputError
from xbp.random import Seed, generator


def random_split(source: Source, shares: Sequence[float], rng: Seed = None) -> list[Subset]:
    """A source split at random into disjoint ones.

    Parameters
    ----------
    source : Source
    shares : sequence of int or float
        Numbers of samples, whose sum is at most ``len(source)``; or shares of it, whose sum is 1:
        then each gets its share rounded down, and the first ones one more, until none is left.
    rng : int, numpy.random.Generator or None

    Returns
    -------
    list of Subset
        As many as shares.

    Raises
    ------
    InputError
        The shares are something else, or one of the parts would be empty.

    Examples
    --------
    >>> import numpy as np
    >>> from xbp.data import Arrays
    >>> source = Arrays(np.arange(10))
    >>> [len(part) for part in random_split(source, [0.75, 0.25], rng=0)]
    [8, 2]
    """
    check_source(source)
    counts = _counts(shares, len(source))
    order = generator(rng).permutation(len(source))
    ends = np.cumsum(counts)
    return [Subset(source, order[e - n : e]) for n, e in zip(counts, ends, strict=True)]


def train_test_split(
    x: Any, y: Any = None, *, test: float = 0.2, stratify: bool = False, rng: Seed = None
) -> tuple[Subset, Subset]:
    """Arrays or a source, split at random into training and test samples.

    Parameters
    ----------
    x : Source, or array
    y : array, optional
        Targets, if x is an array.
    test : float, default 0.2
        The fraction of test samples, at least one sample; with `stratify`, of each class.
    stratify : bool, default False
        Whether both parts have each label in the same proportion; for integer labels (N,).
    rng : int, numpy.random.Generator or None

    Returns
    -------
    train, test : Subset

    Raises
    ------
    InputError
        `test` is not between 0 and 1; a part would be empty; there are no labels to stratify by, or
        a class has one sample.

    Examples
    --------
    >>> import numpy as np
    >>> train, test = train_test_split(np.arange(10), np.arange(10) % 2, stratify=True, rng=0)
    >>> x, y = test.batch(np.arange(len(test)))
    >>> sorted(y.tolist())
    [0, 1]
    """
    share = number("test", test, least=0, most=1)
    if isinstance(x, Source) and y is not None:
        msg = "a source has its targets itself; leave y out"
        raise InputError(msg)
    source = x if isinstance(x, Source) else Arrays(x, y)
    if stratify:
        groups = _classes(source)
    else:
        groups = [np.arange(len(source))]
    draw, train, tested = generator(rng), [], []
    for group in groups:
        count = max(1, round(share * len(group)))
        if not 0 < share < 1 or count >= len(group):
            of = f" of class {_label(source, group)}" if stratify else ""
            msg = (
                f"test={share:g} leaves nothing to train or to test with of {len(group)} "
                f"samples{of}; take a share between 0 and 1, or more samples"
            )
            raise InputError(msg)
        order = draw.permutation(group)
        tested.append(order[:count])
        train.append(order[count:])
    parts = [draw.permutation(np.concatenate(part)) for part in (train, tested)]
    return Subset(source, parts[0]), Subset(source, parts[1])


def _label(source: Source, group: Any) -> int:
    return int(source.y[group[0]])  # type: ignore[attr-defined]


def _classes(source: Source) -> list[Any]:
    """The samples of each label, in the order of the labels."""
    labels = as_numbers(source.y) if isinstance(source, Arrays) and source.y is not None else None
    if labels is None or labels.ndim != 1 or labels.dtype.kind not in "iu":
        msg = (
            "stratify needs arrays with integer labels y of shape (N,), got "
            f"{described(source) if labels is None else described(labels)}"
        )
        raise InputError(msg)
    order = np.argsort(labels, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)


def _counts(shares: Any, length: int) -> list[int]:
    values = list(shares) if isinstance(shares, Sequence | np.ndarray) else []
    values = [v for v in values if isinstance(v, int | float | np.number) and v > 0]
    if not values or len(values) != len(shares):
        msg = f"shares must be positive numbers, as in [0.8, 0.2] or [800, 200], got {shares!r}"
        raise InputError(msg)
    if all(float(value).is_integer() for value in values) and sum(values) != 1:
        counts = [int(value) for value in values]
    elif abs(sum(values) - 1) < 1e-9:
        counts = [int(value * length + 1e-9) for value in values]
        for index in range(length - sum(counts)):
            counts[index] += 1
    else:
        msg = f"shares must be whole numbers, or parts whose sum is 1, got {shares!r}"
        raise InputError(msg)
    if sum(counts) > length or min(counts) < 1:
        msg = f"{length} samples cannot be divided into {counts}; each part needs at least one"
        raise InputError(msg)
    return counts
