"""Snapshots of a training: taken from a `Trainer`, and restored into one.

A step depends on the parameters, the optimizer's state, the batch and the masks. The order of epoch
e follows from (seed, e) and the masks of step t from (seed, t), so two integers are the whole state
of the random numbers. Together with the sums of the current epoch, the history and the state of the
callbacks, this is enough to go on as if the training had never been interrupted. The result is
equal bit for bit wherever a step is reproducible bit for bit.

- numpy and array_api_strict: it is, with an equal number of threads.
- CuPy: not measured. cuBLAS promises it for one CUDA stream on the same GPU model and version;
  elementwise kernels and plain sums are assumed to be reproducible; additions in any order
  (`scatter_add`, `cumsum`) are not.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from xbp._version import __version__
from xbp.arguments import described
from xbp.backend import Array, dtype_name, library_of
from xbp.errors import DataError, InputError, on_one_line
from xbp.models.registry import recipe_of
from xbp.random import RandomStream
from xbp.training.callbacks.base import Callback, Training
from xbp.training.files.checkpoints import FORMAT, Checkpoint
from xbp.training.files.tensors import part, write_tensors
from xbp.training.fingerprint import difference
from xbp.training.interrupt import INTERRUPTED
from xbp.training.metrics.averages import Averages

# --- taking a snapshot ---


def snapshot(trainer: Training) -> tuple[dict[str, Array], dict[str, Any]]:
    """All that the rest of the training depends on: arrays, and a document of JSON values."""
    state, optimizer = trainer.state, trainer.optimizer
    between_epochs = state.steps_done == 0
    arrays = {f"model.{name}": value for name, value in trainer.model.state_dict().items()}
    counts: dict[str, Any] = {}
    _sort("optimizer.", optimizer.state_dict(), arrays, counts)
    if not between_epochs:
        _sort("epoch.", trainer.measured().state_dict(), arrays, {})
    callbacks = []
    for index, callback in enumerate(stateful(trainer.all_callbacks)):
        values: dict[str, Any] = {}
        remembered = callback.state_dict()
        if not isinstance(remembered, Mapping):
            what = f"{type(callback).__name__}.state_dict"
            msg = f"{what} must return a dict of names to values, got {described(remembered)}"
            raise InputError(msg)
        _sort(f"callbacks.{index}.", remembered, arrays, values)
        callbacks.append({"class": type(callback).__name__, "state": values})
    backend = trainer.model.backend()
    reason = state.stop_reason
    own_rates = [None if callable(lr) else lr for lr in optimizer.own_rates()]
    return arrays, {
        "format": FORMAT,
        "version": 1,
        "xbp": __version__,
        "backend": backend and backend.name,
        "model": recipe_of(trainer.model),
        "run": trainer.fingerprint.description if trainer.fingerprint else {},
        "position": {
            "seed": state.seed,
            "first_epoch": state.first_epoch,
            "epochs_done": state.epochs_done,
            "steps_done": state.steps_done,
            "steps": optimizer.steps,
            "seconds": 0.0 if between_epochs else trainer.elapsed(),
            "stopped": reason if between_epochs and reason != INTERRUPTED else "",
        },
        "optimizer": counts,
        "lr": None if callable(optimizer._lr) else optimizer.lr,
        **({"own_rates": own_rates} if own_rates else {}),
        **({"scaling": trainer.scaling.state_dict()} if trainer.scaling else {}),
        "history": {"records": state.history.records, "seconds": state.history.seconds},
        "callbacks": callbacks,
    }


def write_snapshot(trainer: Training, path: str | os.PathLike[str], **more: Any) -> None:
    """Write a snapshot to a file, with `more` in its document. All ranks call it; rank 0 writes.

    Raises
    ------
    DataError
        It cannot be written; an older file stays as it is.
    """
    trainer.measured().join()
    if trainer.share.first:
        arrays, document = snapshot(trainer)
        write_tensors(path, arrays, document | more)


def stateful(callbacks: list[Callback]) -> list[Callback]:
    """Those that remember something between steps or epochs."""
    return [callback for callback in callbacks if callback.state_dict()]


def _sort(
    prefix: str, state: Mapping[str, Any], arrays: dict[str, Array], rest: dict[str, Any]
) -> None:
    """Put arrays into `arrays`, and everything else into `rest`."""
    for name, value in state.items():
        if library_of(value) is not None and not isinstance(value, np.generic):
            arrays[prefix + name] = value
        else:
            rest[name] = value


# --- restoring it ---


def restore(trainer: Training, checkpoint: Checkpoint) -> None:
    """Restore `checkpoint` into `trainer`, in a `fit` that has begun.

    Raises
    ------
    InputError
        The run differs from that of the checkpoint.
    DataError
        The checkpoint does not fit the model, the optimizer or the callbacks.
    """
    _check_fingerprint(trainer, checkpoint)
    _check_arrays(trainer, checkpoint)
    file, arrays = checkpoint.file, checkpoint.file.read()
    state = trainer.state
    state.seed = checkpoint.seed
    state.epochs_done = checkpoint.epochs_done
    state.stream = RandomStream(checkpoint.seed, step=checkpoint.steps)
    if checkpoint.steps_done:  # before their state is restored
        for callback in trainer.callbacks:
            callback.on_epoch_begin(trainer, state.epochs_done + 1)
    try:
        trainer.model.load_state_dict(part(arrays, "model."))
        counts = {name: np.asarray(value) for name, value in checkpoint.counts.items()}
        trainer.optimizer.load_state_dict(counts | part(arrays, "optimizer."))
        if checkpoint.lr is not None:
            trainer.optimizer.lr = checkpoint.lr
        if trainer.scaling is not None:
            trainer.scaling.load_state_dict(checkpoint.scaling)
        if checkpoint.own_rates:
            trainer.optimizer.set_own_rates(checkpoint.own_rates)
        if checkpoint.steps_done:
            state.averages = Averages(trainer.loss, trainer.metrics, trainer.share)
            state.averages.load_state_dict(part(arrays, "epoch."))
        for index, callback in enumerate(stateful(trainer.all_callbacks)):
            remembered = checkpoint.callbacks[index]["state"]
            callback.load_state_dict(remembered | part(arrays, f"callbacks.{index}."))
    except DataError:
        raise
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError) as error:
        file.refuse(f"does not fit this run ({error}); was it written by another one?")
    state.steps_done = checkpoint.steps_done
    state.seconds = checkpoint.seconds
    state.history.records = checkpoint.records
    state.history.seconds = checkpoint.times
    state.stop_reason = state.stop_reason or checkpoint.stopped


def _check_fingerprint(trainer: Training, checkpoint: Checkpoint) -> None:
    assert trainer.fingerprint is not None
    now, then = trainer.fingerprint.description, checkpoint.fingerprint
    for name in [*now, *then]:
        if now.get(name) != then.get(name):
            msg = (
                f"this run is not that of {checkpoint.file.name}: {on_one_line(name)} "
                f"{difference(now.get(name), then.get(name))}; start with the same options and "
                "data, or without resume"
            )
            raise InputError(msg)
    classes = [
        entry.get("class")
        if isinstance(entry, dict) and isinstance(entry.get("state"), dict)
        else None
        for entry in checkpoint.callbacks
    ]
    own = [type(callback).__name__ for callback in stateful(trainer.all_callbacks)]
    if classes != own:
        msg = (
            f"{checkpoint.file.name} holds the state of the callbacks {on_one_line(classes)}, "
            f"where this run has {own}; start with the same callbacks in the same order"
        )
        raise InputError(msg)


def _check_arrays(trainer: Training, checkpoint: Checkpoint) -> None:
    """Refuse wrong names, shapes and dtypes before any array is read."""
    model = {name: (a.shape, a.dtype.name) for name, a in trainer.model.state_dict().items()}
    parameters = [(p.shape, dtype_name(p.data.dtype)) for p in trainer.optimizer.parameters]
    seen = ((checkpoint.steps_done,), "float64")
    counted = checkpoint.file.dtypes.get("epoch.loss.sizes")  # samples, or what the loss counts
    sizes = (seen[0], "float64" if counted == "float64" else "int64")
    sums = {"epoch.loss.values": seen, "epoch.loss.sizes": sizes}
    expected = {f"model.{name}": kind for name, kind in model.items()}
    expected |= sums if checkpoint.steps_done else {}
    file = checkpoint.file
    for name, shape in file.shapes.items():
        room, _, rest = name.partition(".")
        if room == "optimizer":
            index = rest.partition(".")[0]
            known = index.isdecimal() and int(index) < len(parameters)
            expected[name] = parameters[int(index)] if known else ((), "")
        free = room == "callbacks" or (room == "epoch" and not rest.startswith("loss."))
        if not free and expected.get(name) != (shape, file.dtypes[name]):
            wanted = " ".join(map(str, reversed(expected[name]))) if name in expected else "nothing"
            got = f"{file.dtypes[name]} {shape}"
            file.refuse(f"does not fit: its {name!r} is {got}, where {wanted} was expected")
    for name in expected.keys() - file.shapes.keys():
        file.refuse(f"does not fit: it lacks {name!r}")
    if checkpoint.steps_done >= trainer.steps_per_epoch > 0:
        file.refuse(
            f"is malformed: it stands at step {checkpoint.steps_done} of an epoch of "
            f"{trainer.steps_per_epoch} steps"
        )
