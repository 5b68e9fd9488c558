"""The schedule of the learning rate, compared with the steps to come."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from xbp.arguments import name_of
from xbp.errors import InputError
from xbp.optim import Optimizer
from xbp.optim.schedules import rate_of
from xbp.training.callbacks.base import Callback
from xbp.training.callbacks.rates import LearningRateScheduler
from xbp.training.door.warn import warn
from xbp.training.files.checkpoints import Checkpoint


def steps_to_come(steps: int, in_fit: int, in_epoch: int, resumed: Checkpoint | None) -> range:
    """The steps that a `fit` will make, as a schedule counts them.

    Parameters
    ----------
    steps : int
        The number of steps that the optimizer has made.
    in_fit, in_epoch : int
        The number of steps in the whole `fit`, and in each of its epochs.
    resumed : Checkpoint or None
        Where the `fit` resumes.
    """
    if resumed is None:
        return range(steps, steps + in_fit)
    made = (resumed.epochs_done - resumed.first_epoch) * in_epoch + resumed.steps_done
    return range(resumed.steps, resumed.steps - made + in_fit)


def check_schedule(
    optimizer: Optimizer, callbacks: Sequence[Callback], steps: range, *, open_end: bool = False
) -> None:
    """Compare the optimizer's schedule with the steps that will be made.

    With `open_end`, their number is not known, and only the first is looked at.

    Raises
    ------
    InputError
        The schedule gives no rate for the last step.

    Warns
    -----
    UserWarning
        The schedule is made for another number of steps.
    """
    scheduled = any(isinstance(callback, LearningRateScheduler) for callback in callbacks)
    common = None if scheduled else optimizer._lr
    for lr in [common if own is None else own for own in optimizer.own_rates() or [None]]:
        if callable(lr):
            _check(lr, steps.start, steps.stop, open_end)


def _check(schedule: Callable[[int], float], start: int, end: int, open_end: bool) -> None:
    rate_of(schedule, f"step {start}", schedule(start))
    if open_end:
        return
    try:
        rate_of(schedule, f"step {end - 1}", schedule(end - 1))
    except InputError:
        raise
    except Exception as error:
        msg = (
            f"the schedule {name_of(schedule)} fails at step {end - 1}, the last of this training "
            f"({type(error).__name__}: {error}); let it cover all of them"
        )
        raise InputError(msg) from error
    total = getattr(schedule, "total_steps", None) or end
    if total > end or (total < end and not getattr(schedule, "stays", False)):
        fate = "will not come to its end" if total > end else "stays at its end from then on"
        warn(
            f"{type(schedule).__name__} is made for {total} steps, where this training ends after "
            f"{end}: the rate {fate}; give it total_steps={end}, if that is not meant"
        )
