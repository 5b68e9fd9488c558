"""Advice after a step that needs more memory than there is."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from xbp.backend import Array, asked_for, backend_of, free_memory, on_host, out_of_memory
from xbp.errors import OutOfMemoryError
from xbp.nested import tree_leaves, tree_map
from xbp.nn import Layer, for_parameters
from xbp.nn.statistics import buffers_kept
from xbp.training.state import Pieces

ARRAYS = 4
"""Assume that a step needs four arrays the size of the one that failed."""


def step_too_large(
    pieces: Pieces, batch_size: int, error: Exception, x: Array, y: Array
) -> OutOfMemoryError:
    """The error to raise in place of `error`, which a training step raised."""
    traceback.clear_frames(error.__traceback__)  # they hold the arrays of the step
    pieces.optimizer.zero_grad()

    def attempt(size: int) -> None:
        """Forward and backward of a smaller batch."""
        try:
            with buffers_kept(pieces.model), pieces.share.apart(pieces.model):
                batch = tree_map(lambda part: part[:size, ...], x)
                target = tree_map(lambda part: part[:size, ...], y)
                prediction, backward = pieces.model.forward(batch, training=True, rng=0)
                for_parameters(backward)(pieces.loss(prediction, target)[1])
        finally:
            pieces.optimizer.zero_grad()

    return too_large("a step", error, tree_leaves(x)[0], batch_size, attempt)


@contextmanager
def enough_memory(x: Array, size: int, what: str, model: Layer) -> Iterator[None]:
    """Replace an error about memory in the block, in which `model` takes batches of `x`.

    Raises
    ------
    OutOfMemoryError
    """
    try:
        yield
    except Exception as error:
        if not out_of_memory(error):
            raise
        traceback.clear_frames(error.__traceback__)

        def attempt(n: int) -> None:
            model(tree_map(lambda part: part[:n, ...], x))

        raise too_large(what, error, tree_leaves(x)[0], size, attempt) from None


def too_large(
    what: str, error: Exception, x: Array, size: int, attempt: Callable[[int], object]
) -> OutOfMemoryError:
    """The error to raise in place of `error`: what was asked for, and a batch size that may fit.

    On a device, smaller batches are attempted. On the host, the size of the failed request decides
    alone: a system may promise memory that it does not have, and kill the process that uses it.

    Parameters
    ----------
    what : str
        What needs too much memory, such as ``"a step"``.
    error : Exception
    x : array
        The data.
    size : int
        The batch size.
    attempt : callable
        Computes the same with a smaller batch size.
    """
    asked, free, given = asked_for(error), free_memory(x), min(size, x.shape[0])
    fitting = given
    while fitting > 1:
        fitting //= 2
        if not on_host(x):
            enough = _succeeds(attempt, fitting)
        else:
            enough = not (asked and free) or ARRAYS * asked * fitting <= free * given
        if enough:
            advice = f"a batch size of {fitting} would probably fit"
            break
    else:
        advice = "not even a batch size of 1 would fit: take a smaller model or dtype"
    free_memory(x)  # releases the memory of the attempts
    wanted = f"{in_words(asked)} were asked for" if asked else "more was asked for than there is"
    there = f", {in_words(free)} were free" if free else ""
    msg = f"{what} with batch size {size} needs too much memory: {wanted}{there}; "
    return OutOfMemoryError(f"{msg}{advice} (on {backend_of(x)})")


def _succeeds(attempt: Callable[[int], object], size: int) -> bool:
    """Whether an attempt with batches of this size has enough memory."""
    try:
        attempt(size)
    except Exception as error:
        if not out_of_memory(error):
            raise
        traceback.clear_frames(error.__traceback__)
        return False
    return True


def in_words(size: float) -> str:
    """A number of bytes with its unit.

    >>> in_words(1000), in_words(3 * 2**30)
    ('1000 bytes', '3.0 GiB')
    """
    unit = "bytes"
    for larger in ("KiB", "MiB", "GiB", "TiB", "PiB", "EiB"):
        if size < 1024:
            break
        size, unit = size / 1024, larger
    return f"{size:g} bytes" if unit == "bytes" else f"{size:.1f} {unit}"
