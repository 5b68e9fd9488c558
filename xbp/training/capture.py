"""Captured steps: when a `fit` replays recordings of its steps, and when it makes eager ones.

See `xbp.training.recordings`. If capturing fails, nothing has changed, and eager steps go on from
there. On the host nothing is said of it: there steps are recorded only if all of their code is
xbp's (`xbp.training.own`), and if the recording is small.
"""

from __future__ import annotations

import os
import warnings
import weakref

from xbp.backend import Array, ReplayError, backend_of, brief, graph_for, out_of_memory
from xbp.errors import InputError
from xbp.optim import Optimizer
from xbp.training.callbacks.base import Training
from xbp.training.own import check_own
from xbp.training.recordings import Phase, Recordings
from xbp.training.state import Pair
from xbp.training.steps import EagerSteps, Stepper, next_rates

KEPT = 2**24
"""The host keeps recordings for the next `fit` if that keeps no more bytes of data alive."""

__all__ = ["CapturedSteps", "Phase", "Recordings", "recordings_of", "stepper_for"]


def stepper_for(
    trainer: Training,
    given: Pair,
    data: Pair,
    *,
    capture: bool | None,
    before: Stepper | None,
    own_step: bool,
) -> Stepper:
    """Captured steps if they are wanted and the device supports them; else eager steps.

    Parameters
    ----------
    trainer : Training
        In a `fit`.
    given, data : (x, y)
        The user's arrays, and the same data where the model lives.
    capture : bool or None
        As in `Trainer`.
    before : Stepper or None
        The stepper of the last `fit`, whose recordings may be used again.
    own_step : bool
        Whether the trainer's class overrides `Trainer.step`, which a replay would not call.

    Raises
    ------
    InputError
        With ``capture=True``: the step cannot be recorded, or the group's calls, or the library
        records nothing.
    """
    eager = EagerSteps(trainer, data)
    wanted = os.environ.get("XBP_CAPTURE", "1") != "0" if capture is None else capture
    if not wanted:
        return eager
    graph = graph_for(data[0])
    if graph is None:
        if capture:
            place = backend_of(data[0])
            msg = f"capture=True needs numpy or a GPU, where the model is on {place}"
            raise InputError(msg)
        return eager
    if not trainer.share.recordable:
        if capture:
            msg = (
                "capture=True needs processes whose sums a GPU records, as those of 'nccl', "
                f"where the group is {trainer.share.group}; take that one, or leave capture out"
            )
            raise InputError(msg)
        return eager
    steps = CapturedSteps(trainer, eager, required=bool(capture), on_host=graph.on_host)
    earlier = recordings_of(before)
    if earlier is not None and earlier.fit_again(trainer, given, data):
        steps.recordings = earlier
        return steps
    try:
        check(trainer, own_step)
        if graph.on_host:
            check_own(trainer)
            gradients = sum(parameter.data.nbytes for parameter in trainer.optimizer.parameters)
            graph.check_size(gradients)
        steps.recordings = Recordings(trainer, given, data, on_host=graph.on_host)
    except InputError as error:
        steps.give_up(error)
    return steps


def recordings_of(stepper: Stepper | None) -> Recordings | None:
    """The recordings that `stepper` replays; None for eager steps, or after it gave up."""
    return stepper.recordings if isinstance(stepper, CapturedSteps) else None


class CapturedSteps:
    """Steps by replaying recordings, or by `EagerSteps` where that fails. (A `Stepper`.)

    Parameters
    ----------
    trainer : Training
        In a `fit`.
    eager : EagerSteps
    required : bool
        Whether a failure to capture is an error, in place of a warning.
    on_host : bool
        Whether the host records. Then there is no warning either, and a replay ends at a loss that
        is not finite.
    """

    def __init__(
        self, trainer: Training, eager: EagerSteps, required: bool, on_host: bool = False
    ) -> None:
        self.trainer: Training = weakref.proxy(trainer)  # no reference cycle
        self.eager, self.required, self.on_host = eager, required, on_host
        self.recordings: Recordings | None = None
        self.refused = self.finite = False
        self.rates = eager.rates

    def begin(self, order: Array) -> None:
        self.eager.begin(order)
        if self.recordings is not None:
            self.recordings.begin(order)

    def step(self, k: int, size: int, batch: Pair | None = None) -> None:
        if self.recordings is not None:
            self.rates = rates = next_rates(self.trainer.optimizer)
            try:
                with self.trainer.share.batch(size):
                    if batch is None and self.recordings.step(k, size, rates):
                        self.finite = self.on_host
                        return
            except ReplayError as error:
                cause = error.__cause__
                if not isinstance(cause, Exception) or not out_of_memory(cause):
                    raise
                raise self.eager.too_large(cause) from None
            except Exception as error:
                self.give_up(error)
        self.finite = False
        self.eager.step(k, size, batch)
        self.rates = self.eager.rates

    def give_up(self, error: Exception) -> None:
        """Warn and go on with eager steps; or raise, if capturing is required."""
        if self.required:
            raise error
        cause: BaseException = error
        while cause.__context__ is not None:  # the first error, not its consequences
            cause = cause.__context__
        self.flush()
        self.refused, self.recordings = True, None
        if self.on_host:
            return
        msg = (
            "training goes on with ordinary steps, as they cannot be recorded for the device "
            f"({brief(cause)}); Trainer(…, capture=False) does not try to"
        )
        warnings.warn(msg, RuntimeWarning, stacklevel=2)

    def flush(self) -> None:
        if self.recordings is not None:
            self.recordings.flush()

    def loss(self) -> Array:
        kept = self.trainer.state.loss
        if kept is None and self.recordings is not None:
            return self.recordings.last_loss()
        return kept

    def end(self) -> None:
        self.eager.end()
        recordings = self.recordings
        if self.on_host and recordings is not None and recordings.bytes_of_data() > KEPT:
            self.flush()
            self.trainer.state.loss = self.loss()
            self.recordings = None


def check(trainer: Training, own_step: bool) -> None:
    """Refuse code of the user that a replay would not call.

    Raises
    ------
    InputError
    """
    if own_step:
        msg = f"{type(trainer).__name__} has a step of its own"
        raise InputError(msg)
    for rule, _ in trainer.optimizer.rules():
        kind = type(rule)
        if kind.step is not Optimizer.step or kind.zero_grad is not Optimizer.zero_grad:
            msg = f"{kind.__name__} has a step of its own, where it could have an update"
        elif kind.coefficients is Optimizer.coefficients:
            what = "does not say which coefficients its rule takes"
            msg = f"{kind.__name__} {what}; define coefficients(self, lr, t)"
        else:
            continue
        raise InputError(msg)
