"""The value that a callback monitors: its name, its direction, its best value."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

from xbp.arguments import choice
from xbp.errors import InputError
from xbp.training.callbacks.base import Training, as_validated
from xbp.training.history import Record


def monitored(record: Record, name: str) -> float:
    """The value called `name`, or an error that lists the names there are."""
    if name not in record:
        raise InputError(_no_such(name, list(record)))
    return record[name]


def check_monitored(trainer: Training, name: str) -> None:
    """Refuse, before the first step, a name that no record of this training will have.

    Raises
    ------
    InputError
        No record will have it. A user's own callbacks may add names, so nothing is refused if
        there are any.
    """
    if name not in trainer.expected and not trainer.may_have_more:
        raise InputError(_no_such(name, trainer.expected))


def _no_such(name: str, names: Sequence[str]) -> str:
    validated = any(known.startswith("val_") for known in names)
    hint = "; give fit validation_data" if name.startswith("val_") and not validated else ""
    return f"there is no {name!r} to monitor, only {', '.join(names)}{hint}"


LARGER = "accuracy acc precision recall f1 auc auroc auprc iou dice r2 bleu psnr ssim kappa mcc"
SMALLER = "loss error err mse mae rmse mape nll perplexity ppl entropy crossentropy bce deviance lr"
NEUTRAL = (
    "val train test epoch mean absolute squared root macro micro weighted binary balanced "
    "categorical top"
)


def sign_of(monitor: str, mode: str) -> int:
    """1 where smaller is better, -1 where larger is.

    Mode "auto" reads the direction from the words of the name, if it knows all of them: larger is
    better for accuracy, acc, precision, recall, f1, auc, …, smaller for loss, error, mse, … Words
    are separated by ``_``, ``/``, ``.`` or a space; numbers after the first word are ignored. So
    ``1-accuracy`` and ``-loss`` are unknown names.

    Raises
    ------
    InputError
        `mode` is invalid; or it is "auto" and the name is unknown or has words of both directions.
    """
    if choice("mode", mode, ("auto", "min", "max")) != "auto":
        return 1 if mode == "min" else -1
    names = [word for word in re.split(r"[_/.\s]+", str(monitor)) if word]
    words = {word for i, word in enumerate(names) if i == 0 or not word.isdecimal()}
    words -= set(NEUTRAL.split())
    for known, sign in ((LARGER, -1), (SMALLER, 1)):
        if words and words <= set(known.split()):
            return sign
    msg = (
        f"mode='auto' does not know whether {monitor!r} should be large or small; "
        "give mode='max' or mode='min'"
    )
    raise InputError(msg)


def improved(best: float | None, value: float, sign: int, min_delta: float = 0.0) -> bool:
    """Whether `value` is the first finite one, or better than the best by more than `min_delta`."""
    if not math.isfinite(value):
        return False
    return best is None or math.isnan(best) or sign * (best - value) > min_delta


def kept_as_validated(trainer: Training, monitor: str) -> AbstractContextManager[None]:
    """A context in which the model is the one that the monitored value is of."""
    return as_validated(trainer) if monitor.startswith("val_") else nullcontext()
