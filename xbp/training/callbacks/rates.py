"""Learning rates that change with the epoch."""

from __future__ import annotations

from collections.abc import Callable

from xbp.arguments import takes
from xbp.errors import InputError
from xbp.optim.schedules import rate_of
from xbp.training.callbacks.base import Callback, Training


class LearningRateScheduler(Callback):
    """Set the learning rate of each epoch: lr = schedule(epoch), with epoch = 0, 1, 2, …

    It takes the place of the optimizer's own rate or schedule; a group of parameters that has one
    of its own keeps it. The epochs of several `fit` of a trainer are counted on, and the last rate
    stays with the optimizer. For a rate that changes from step to step, give the optimizer a
    function of the step as its `lr` (see `xbp.optim.schedules`).

    Parameters
    ----------
    schedule : callable ``int -> number or 0-d array``
        Epochs are counted from 0, as in Keras.

    Raises
    ------
    InputError
        `schedule` is no function of one argument; or, in training, it gives something else than a
        finite rate of at least 0, or all groups of parameters have a rate of their own.

    Examples
    --------
    >>> from xbp.training import LearningRateScheduler
    >>> halved = LearningRateScheduler(lambda epoch: 0.1 * 0.5**epoch)  # 0.1, 0.05, 0.025, …
    """

    def __init__(self, schedule: Callable[[int], float]) -> None:
        if not callable(schedule):
            msg = f"schedule must be a function of the epoch, got {type(schedule).__name__}"
            raise InputError(msg)
        takes("schedule", schedule, "epoch")
        self.schedule = schedule

    def on_fit_begin(self, trainer: Training) -> None:
        own = trainer.optimizer.own_rates()
        if own and None not in own:
            msg = (
                "LearningRateScheduler sets the optimizer's rate, but each group of parameters has "
                "one of its own; take 'lr' out of a group, or set trainer.optimizer.param_groups"
            )
            raise InputError(msg)

    def on_epoch_begin(self, trainer: Training, epoch: int) -> None:
        lr = self.schedule(epoch - 1)
        trainer.optimizer.lr = rate_of(self.schedule, f"epoch {epoch}", lr)
