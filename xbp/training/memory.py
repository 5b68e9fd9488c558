"""What to do where a step needs more memory than there is."""

from __future__ import annotations

import traceback
from typing import TYPE_CHECKING

from xbp.backend import Array, asked_for, backend_of, free_memory, on_host, out_of_memory
from xbp.errors import OutOfMemoryError
from xbp.nn import for_parameters

if TYPE_CHECKING:
    from xbp.training.trainer import Trainer

ARRAYS = 4
"""So many arrays as large as the one that did not fit a step is taken to need."""


def too_large(trainer: Trainer, error: Exception, x: Array, y: Array) -> OutOfMemoryError:
    """One sentence in place of `error`: what was asked for, and which batch size may do.

    On a device smaller ones are tried; on the host, where a system may promise memory that it does
    not have, and end the process that takes it, the size of what was asked for has to do.
    """
    traceback.clear_frames(error.__traceback__)  # they hold the arrays of the step
    trainer.optimizer.zero_grad()
    asked, free = asked_for(error), free_memory(x)
    size = trainer.batch_size
    while size > 1:
        size //= 2
        if not on_host(x):
            enough = _tried(trainer, x[:size, ...], y[:size, ...])
        else:
            enough = not (asked and free) or ARRAYS * asked * size <= free * trainer.batch_size
        if enough:
            advice = f"a batch size of {size} would probably fit"
            break
    else:
        advice = "not even a batch size of 1 would fit: take a smaller model or dtype"
    wanted = f"{in_words(asked)} were asked for" if asked else "more was asked for than there is"
    there = f", {in_words(free)} were free" if free else ""
    msg = f"a step with batch size {trainer.batch_size} needs too much memory: {wanted}{there}; "
    return OutOfMemoryError(f"{msg}{advice} (on {backend_of(x)})")


def _tried(trainer: Trainer, x: Array, y: Array) -> bool:
    """Whether forward and backward find their memory."""
    try:
        prediction, backward = trainer.model.forward(x, training=True, rng=0)
        for_parameters(backward)(trainer.loss(prediction, y)[1])
    except Exception as error:
        if not out_of_memory(error):
            raise
        traceback.clear_frames(error.__traceback__)
        return False
    finally:
        trainer.optimizer.zero_grad()
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
