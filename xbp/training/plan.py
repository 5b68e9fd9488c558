"""The plan of a `fit`: its arguments and its data, checked before the first step."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any, NamedTuple

from xbp.arguments import described, integer
from xbp.backend import to_numpy
from xbp.data.sources import Source, is_stream
from xbp.errors import InputError
from xbp.nested import tree_leaves
from xbp.training.callbacks.base import Callback
from xbp.training.door.batches import check_augmentation
from xbp.training.door.callbacks import adds_names, callbacks_of, expected_names
from xbp.training.door.data import check_alike, pair_of
from xbp.training.door.pieces import check_forward, check_last_batch
from xbp.training.door.schedule import check_schedule, steps_to_come
from xbp.training.feeds import Feed, feed_of
from xbp.training.files.checkpoints import Checkpoint, open_checkpoint
from xbp.training.state import Pieces


class Plan(NamedTuple):
    """What a `fit` will do."""

    feed: Feed
    validation: Feed | None
    epochs: int
    part: int
    """Where gradients are accumulated, samples of each part of a step; else 0."""
    callbacks: list[Callback]
    expected: list[str]
    """The names that the record of an epoch will hold."""
    may_have_more: bool
    """Whether a user's own callback or metric may add names to a record."""
    resumed: Checkpoint | None


def facts(plan: Plan) -> dict[str, Any]:
    """What must be the same for all processes that train together, by names for messages."""
    feed, validation, resumed = plan.feed, plan.validation, plan.resumed
    return {
        "the first sample": _samples(feed, slice(0, 1)),
        "the last sample, of the data or of the first batch,": _samples(feed, slice(-1, None)),
        "the number of samples": feed.samples,
        "batch_size": (feed.batch_size, plan.part, feed.drop_last),
        "epochs": plan.epochs,
        "the validation": validation and (_samples(validation, slice(0, 1)), validation.samples),
        "the checkpoint": resumed and (resumed.steps, resumed.position),
        "the list of callbacks": [type(callback).__name__ for callback in plan.callbacks],
    }


def _samples(feed: Feed, rows: slice) -> list[bytes]:
    return [to_numpy(part[rows, ...]).tobytes() for part in tree_leaves(feed.example)]


def make_plan(
    pieces: Pieces,
    x: Any,
    y: Any,
    epochs: int,
    batch_size: int,
    validation_data: Any,
    callbacks: Iterable[Callback] | None,
    *,
    accumulate: int,
    drop_last: bool,
    resume: str | os.PathLike[str] | None,
) -> Plan:
    """The plan of a `fit` with these arguments, which are those of `Trainer.fit`.

    Raises
    ------
    InputError, DataError, OutOfMemoryError
        As `Trainer.fit` does before its first step.

    Warns
    -----
    UserWarning
        The schedule of the learning rate is made for another number of steps.
    """
    epochs = integer("epochs", epochs, least=1)
    batch_size = integer("batch_size", batch_size, least=1)
    accumulate = integer("accumulate", accumulate, least=1)
    if accumulate > 1 and is_stream(x) and not isinstance(x, Source):
        msg = (
            "accumulate needs arrays or a source, whose batches are made here; of an iterable, "
            "let it give smaller batches, or leave accumulate out"
        )
        raise InputError(msg)
    callbacks = callbacks_of(callbacks)
    if not isinstance(drop_last, bool):
        msg = f"drop_last must be True or False, got {described(drop_last)}"
        raise InputError(msg)
    feed, quantities = feed_of(pieces, x, y, batch_size * accumulate, epochs, drop_last)
    check_augmentation(pieces, feed.example)
    check_forward(pieces.model, feed.example[0])
    if not drop_last and feed.samples > batch_size and feed.samples % batch_size == 1:
        check_last_batch(pieces.model, feed.example[0], feed.samples, batch_size)
    validation: Feed | None = None
    if validation_data is not None:
        stream = is_stream(validation_data)
        pair = (validation_data, None) if stream else pair_of(validation_data)
        validation, _ = feed_of(pieces, pair[0], pair[1], 512, passes=epochs)
        check_alike(validation.example, feed.example)
    resumed = None if resume is None else open_checkpoint(resume)
    if resumed is not None:
        feed.check_entry(resumed.steps_done)
    steps = steps_to_come(pieces.optimizer.steps, epochs * feed.steps, feed.steps, resumed)
    check_schedule(pieces.optimizer, callbacks, steps, open_end=not feed.steps)
    return Plan(
        feed,
        validation,
        epochs,
        part=batch_size if accumulate > 1 else 0,
        callbacks=callbacks,
        expected=expected_names(pieces.optimizer, quantities, validated=validation is not None),
        may_have_more=adds_names(pieces.metrics.values(), callbacks),
        resumed=resumed,
    )
