"""Random numbers: equal seeds give equal ones on every backend, in whole and in resumed runs.

Initial weights and shuffles are drawn by numpy on the host (`generator`, `permutation`). Dropout
masks are drawn on the device by a counter-based generator (`RandomStream`), whose position is two
integers, so that a run can be resumed anywhere without repeating earlier draws.
"""

from __future__ import annotations

import math
import numbers
import os
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from xbp.arguments import integer, number
from xbp.backend import Array, array_namespace
from xbp.errors import InputError
from xbp.primitives.philox import MASK, random_bits

if TYPE_CHECKING:  # like numpy, import numpy.random on first use
    from numpy.random import (
        Generator as Generator,
    )  # re-exported for layers, which do not import numpy

Seed: TypeAlias = "int | Generator | None"
"""The values of an `rng` keyword (SPEC 7): an int, a numpy Generator, or None for fresh entropy."""


def generator(rng: Seed = None) -> Generator:
    """The numpy Generator for `rng`; a Generator is returned itself, and advances.

    Raises
    ------
    InputError
        `rng` is neither a non-negative int, nor a Generator, nor None.
    """
    return np.random.default_rng(_checked(rng))


def fresh_seed(rng: Seed = None) -> int:
    """The seed `rng` itself, or 63 bits drawn from the Generator or the system."""
    rng = _checked(rng)
    if rng is None:
        return int.from_bytes(os.urandom(8)) >> 1
    if isinstance(rng, np.random.Generator):
        return int(rng.integers(2**63))
    return rng


def permutation(seed: int, epoch: int, n: int) -> NDArray[np.int64]:
    """A shuffle of ``0 … n-1`` that depends on `seed` and `epoch` alone.

    Each epoch has a spawned seed, so the order of epoch 7 does not need those of epochs 0-6.
    """
    key = (integer("epoch", epoch, least=0),)
    sequence = np.random.SeedSequence(integer("seed", seed, least=0), spawn_key=key)
    return np.random.Generator(np.random.PCG64(sequence)).permutation(n)


def categorical(
    logits: NDArray[Any], rng: Seed = None, *, temperature: float = 1.0, top_k: int | None = None
) -> NDArray[np.int64]:
    """A class for each row of logits, drawn by their softmax: where its sum passes a random number.

    Parameters
    ----------
    logits : numpy array (N, C)
    rng : int, numpy.random.Generator or None
    temperature : float, default 1
        What logits are divided by; at 0 the largest is taken, the first of several.
    top_k : int, optional
        The number of largest logits to draw from, besides those equal to the least of them.

    Raises
    ------
    InputError
        A logit is nan, or an argument out of range.

    Examples
    --------
    >>> categorical(np.array([[0.0, 9.0, 8.0]]), temperature=0).tolist()
    [1]
    """
    temperature = number("temperature", temperature, least=0)
    top_k = None if top_k is None else integer("top_k", top_k, least=1)
    z = np.asarray(logits, np.float64)
    if np.isnan(z).any():
        msg = "logits hold nan; look for where the model's weights became so"
        raise InputError(msg)
    if temperature == 0:
        return np.asarray(np.argmax(z, axis=1))
    if top_k is not None and top_k < z.shape[1]:
        least = np.partition(z, -top_k, axis=1)[:, -top_k, None]
        z = np.where(z < least, -np.inf, z)
    with np.errstate(over="ignore"):  # a difference over a small temperature may be -∞
        powers = np.exp((z - z.max(axis=1, keepdims=True)) / temperature)
    sums = np.cumsum(powers, axis=1)
    u = generator(rng).random((len(z), 1))
    return np.asarray(np.sum(sums <= u * sums[:, -1:], axis=1))


class RandomStream:
    """Random bits on the device of an array, by Philox-4x32-10 (Salmon et al. 2011).

    The 128-bit counter of a block of four words is (block, draw, step low, step high). A step makes
    any number of draws, and a draw any number of blocks. So a mask depends on (seed, step, draw)
    alone, and `advance` moves by whole steps.

    Where several processes each compute a share of a batch, samples keep the bits that they have
    in the whole batch; see `take_share`.

    Parameters
    ----------
    rng : int, numpy.random.Generator or None
        The seed, mixed into Philox's 64-bit key.
    step : int, default 0
        The first step, e.g. of a resumed run.

    Attributes
    ----------
    share : (rank, size, total) or None
        Of `take_share`; None where batches are whole.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.zeros(3, dtype=np.float32)
    >>> RandomStream(0).bits((3,), like=x).tolist() == RandomStream(0).bits((3,), like=x).tolist()
    True
    """

    def __init__(self, rng: Seed = None, *, step: int = 0) -> None:
        words = np.random.SeedSequence(fresh_seed(rng)).generate_state(2, np.uint32)
        self.key = (int(words[0]), int(words[1]))
        self.step = 0
        self.share: tuple[int, int, int] | None = None
        self.advance(step)

    def advance(self, step: int | None = None) -> None:
        """Move to the beginning of the next step, or of `step`."""
        self.step = self.step + 1 if step is None else _checked_step(step)
        self.words: tuple[Any, Any] = words_of(self.step)
        self.draws = 0

    def advance_to(self, words: tuple[Array, Array]) -> None:
        """Move to the beginning of the step whose `words_of` are these 0-d int64 arrays."""
        self.words, self.draws = words, 0

    def take_share(self, rank: int, size: int, total: int) -> None:
        """From now on, draw for the rows ``rank::size`` of batches that have `total` rows.

        What `bits` gives are those rows of what it would give for the whole batch; later draws
        agree as well, on a rank without rows too. All bits of the batch are drawn for it.

        Raises
        ------
        InputError
            `rank` is not from 0 to size - 1, or `total` is below 0.

        Examples
        --------
        >>> import numpy as np
        >>> x = np.zeros(3)
        >>> whole, mine = RandomStream(0), RandomStream(0)
        >>> mine.take_share(1, 2, 5)
        >>> mine.bits((2, 3), like=x).tolist() == whole.bits((5, 3), like=x)[1::2].tolist()
        True
        """
        size = integer("size", size, least=1)
        rank, total = integer("rank", rank, least=0), integer("total", total, least=0)
        if rank >= size:
            msg = f"rank must be from 0 to {size - 1}, as there are {size} ranks, got {rank}"
            raise InputError(msg)
        self.share = rank, size, total

    def bits(self, shape: tuple[int, ...], *, like: Array) -> Array:
        """Uniform integers from 0 to 2³² - 1, int64, of `shape`, on the device of `like`.

        Raises
        ------
        InputError
            The stream draws for a share, and the first axis of `shape` is not that of its rows, nor
            of parts of them, as in (N·T, C).
        """
        counter = (self.draws, *self.words)
        self.draws += 1
        if self.share is None:
            return random_bits(like, shape, key=self.key, counter=counter)
        rank, size, total = self.share
        rows = len(range(rank, total, size))
        if not shape or (shape[0] % rows if rows else shape[0]):
            msg = (
                f"random bits of shape {tuple(shape)} are not those of {rows} rows, this process's "
                f"share of a batch of {total}; draw with the samples along the first axis"
            )
            raise InputError(msg)
        if not rows:
            return random_bits(like, shape, key=self.key, counter=counter)
        each = math.prod(shape) // rows
        whole = random_bits(like, (total, each), key=self.key, counter=counter)
        return array_namespace(like).reshape(whole[rank::size, :], shape)


Stream = RandomStream
"""The earlier name of `RandomStream`."""


def words_of(step: int) -> tuple[int, int]:
    """A step as the low and high words of Philox's counter."""
    return step & MASK, step >> 32


def as_stream(rng: Seed | RandomStream) -> RandomStream | None:
    """The RandomStream for the `rng` of a forward; one is returned itself, and advances.

    None stays None: a layer that would draw from it refuses it.
    """
    return rng if rng is None or isinstance(rng, RandomStream) else RandomStream(rng)


def _checked_step(step: Any) -> int:
    """`step` as an int of at most 64 bits, which are two words of Philox's counter."""
    number = integer("step", step, least=0)
    if number < 2**64:
        return number
    msg = f"step must be below 2**64, got {step}"
    raise InputError(msg)


def _checked(rng: Any) -> Any:
    if rng is None or isinstance(rng, np.random.Generator):
        return rng
    if isinstance(rng, numbers.Integral) and not isinstance(rng, bool) and int(rng) >= 0:
        return int(rng)
    msg = f"rng must be a non-negative int, a numpy.random.Generator or None, got {rng!r}"
    raise InputError(msg)
