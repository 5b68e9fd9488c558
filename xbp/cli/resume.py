"""``--resume DIR``: the options and the last checkpoint of an interrupted run."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import typer

from xbp.errors import DataError, InputError
from xbp.training.files.checkpoints import open_checkpoint

CHECKPOINTS = "checkpoints"
FREE = (
    *("backend", "device", "ranks", "data_dir", "text", "texts_", "test", "report"),
    "checkpoint_every",
)
"""Options that may differ: where to compute, and in how many processes; where the data are; and
what else to write.
"""


def notes_of(context: typer.Context) -> dict[str, Any]:
    """The notes of a checkpoint about the command that wrote it.

    Raises
    ------
    InputError
        The command resumes a run with other options than it had.
    """
    options = {
        name: str(value.absolute()) if isinstance(value, Path) else value
        for name, value in context.params.items()
        if name not in ("resume", "output")
    }
    for name, then in (context.default_map or {}).items():
        now = options.get(name)
        if name in options and name not in FREE and now != then:
            option = name.replace("_", "-")
            msg = (
                f"--{option} is {now}, but {then} in the run that is to be resumed; "
                f"leave --{option} out, or start anew without --resume"
            )
            raise InputError(msg)
    return {"command": context.command_path, "options": options}


def checkpoints_of(folder: Path) -> Path:
    return folder / CHECKPOINTS


def where_it_goes_on(folder: Path, backend: str) -> str:
    """One line about the last checkpoint in `folder`, from which `backend` goes on."""
    checkpoint = open_checkpoint(checkpoints_of(folder))
    if checkpoint is None:
        return "starting anew: there is no checkpoint"
    line = f"going on after step {checkpoint.steps:,}, with {checkpoint.epochs_done} epochs done"
    then = checkpoint.document.get("backend")
    return line if then == backend else f"{line}; written on {then}, so equal up to rounding"


def take_options(context: typer.Context, folder: Path | None) -> Path | None:
    """Make the options of the run in `folder` the defaults of this command.

    Raises
    ------
    DataError
        There is no checkpoint, it is malformed, or another command wrote it.
    """
    if folder is None or context.resilient_parsing:
        return folder
    checkpoint = open_checkpoint(checkpoints_of(folder))
    if checkpoint is None:
        msg = (
            f"{str(folder)!r} holds no checkpoint; give the output folder of a run that had "
            "--checkpoint-every, or start it without --resume"
        )
        raise DataError(msg)
    notes = checkpoint.document.get("notes")
    options = notes.get("options") if isinstance(notes, dict) else None
    plain = (str, int, float, type(None))
    if not isinstance(options, dict) or not all(isinstance(v, plain) for v in options.values()):
        checkpoint.file.refuse("was not written by this command; resume it where it was trained")
    if notes.get("command") != context.command_path:
        checkpoint.file.refuse(f"is of {notes.get('command')!r}, not of {context.command_path!r}")
    weights = sum(math.prod(shape) for shape in checkpoint.file.shapes.values())
    classes = options.get("classes", 1)
    if not isinstance(classes, int) or classes > weights:
        checkpoint.file.refuse("has more classes than weights; it is corrupt")
    context.default_map = {**options, "output": str(folder)}
    return folder
