"""The share of a process: of a batch of N samples, rank r of n computes the rows r, r + n, ….

Steps, feeds, evaluation and metrics ask a share for the indices of their rows, and for numbers of
the whole batch. `Whole` is the share of a process that trains alone. The methods of `Share`, the
share of a rank, are calls that all ranks make in the same order.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xbp.backend import Array, array_namespace, dtype_name, is_lost, on_device_of, to_numpy
from xbp.errors import RankError, brief, on_one_line
from xbp.nested import first_of, tree_map
from xbp.nn import Layer, Parameter
from xbp.nn.statistics import pooled
from xbp.parallel import Alone, Group, weighted
from xbp.parallel.gradients import Room, reduce_step, times
from xbp.random import RandomStream, Seed, fresh_seed
from xbp.training.interrupt import INTERRUPTED
from xbp.training.metrics.counting import Metric, len_of
from xbp.training.results import CheckedLoss, counted

Stop = Callable[[str], object]


class Whole:
    """The share of a process that trains alone: all rows."""

    group: Group = Alone()
    rank, size = 0, 1

    first = True
    """Whether this process is the one that prints and writes."""

    recordable = True
    """Whether a device can record its calls in the graph of a step."""

    # --- rows ---

    def span(self, total: int) -> range:
        """The rows of this process, of a batch of `total` samples."""
        return range(total)

    def rows(self, arrays: Any, total: int) -> Any:
        """The rows of this process, of arrays with `total` rows."""
        return arrays

    def part(self, start: int, stop: int) -> slice:
        """The positions of samples `start` … `stop - 1` among the own rows of a batch."""
        return slice(start, stop)

    def batch(self, total: int) -> AbstractContextManager[object]:
        """A context for one batch of `total` samples."""
        return nullcontext()

    def entered(self, model: Layer, x: Any, y: Any) -> AbstractContextManager[tuple[Any, Any]]:
        """A context for a step on the own rows; within `batch`, x and y are these rows."""
        return nullcontext((x, y))

    def draw(self, rng: RandomStream, start: int, total: int) -> None:
        """Let `rng` draw for the own rows of samples `start` … `start + total - 1` of a batch."""

    # --- a step ---

    def loss(self, loss: CheckedLoss, prediction: Any, target: Any) -> tuple[Array, Any, Any]:
        """The loss of the own rows, its gradient, and a weight for `reduce`."""
        return *loss(prediction, target), None

    def loss_of_part(
        self, loss: CheckedLoss, prediction: Any, target: Any, total: int
    ) -> tuple[Array, Any, Any]:
        """The same for a part of a batch of `total` samples: a summand of loss and gradient."""
        value, gradient = loss(prediction, target)
        own = counted(loss.loss, prediction, target)
        if not isinstance(own, int):
            return own * value, tree_map(lambda g: times(own, g), gradient), own
        factor = 1.0 if loss.reduction == "sum" else own / total
        return factor * value, tree_map(lambda g: times(factor, g), gradient), None

    def samples(self, target: Any) -> int:
        """The number of samples of the current batch; `target` belongs to the own rows."""
        return len_of(first_of(target))

    def hopeless(self, value: Array) -> bool:
        """Whether the step ends before its backward: on the host, for a loss that is not finite."""
        return is_lost(value)

    def spoiled(self, value: Array) -> bool:
        """Whether the step ends before the update, for the same reason."""
        return False  # `hopeless` has ended it

    def reduce(self, parameters: Sequence[Parameter], value: Array, weight: Any) -> Array:
        """Make gradients and loss those of the whole batch; `weight` is the sum over its parts."""
        if weight is None:
            return value
        xp = array_namespace(weight)
        factor = 1 / xp.where(weight > 0, weight, 1.0)  # weight 0: all gradients are 0
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad = times(factor, parameter.grad)
        return value * factor

    def counted(self, loss: Any, prediction: Any, target: Any) -> int | Array:
        """The weight of the whole batch in the mean of a loss, after `reduce`."""
        return counted(loss, prediction, target)

    # --- numbers of all ranks ---

    def gathered(self, arrays: Any) -> Any:
        """The whole batch; `arrays` are its own rows."""
        return arrays

    def join(self, metrics: Iterable[Metric]) -> None:
        """Make the states of metrics those of the whole batches."""

    def seed(self, rng: Seed) -> int:
        """The seed that `rng` stands for; a seed that is drawn is drawn by rank 0."""
        return fresh_seed(rng)

    def known(self, text: str) -> str:
        """The text of the first rank that has one."""
        return text

    # --- a fit ---

    def pooled(self, model: Layer) -> AbstractContextManager[object]:
        """A context in which batch norm normalizes by the whole batch."""
        return nullcontext()

    def apart(self, model: Layer) -> AbstractContextManager[object]:
        """A context in which the model calls no other rank."""
        return nullcontext()

    def together(self) -> AbstractContextManager[object]:
        """A context that fails on all ranks if it fails on one."""
        return nullcontext()

    def quiet(self) -> AbstractContextManager[object]:
        """A context in which rank 0 alone warns."""
        return nullcontext()

    def align(self, model: Layer, facts: Mapping[str, Any]) -> None:
        """Begin a `fit`: take the arrays of rank 0, and refuse `facts` that differ."""

    def check_equal(self, model: Layer) -> None:
        """Refuse models that differ between ranks."""

    def interrupter(self, stop: Stop) -> Stop:
        """The function that Ctrl-C calls in place of `stop`."""
        return stop

    def hear(self, stop: Stop, *, ask: bool) -> None:
        """Stop if a rank got Ctrl-C before its last step; with `ask`, before now."""

    def meet(self) -> None:
        """Wait for the other ranks, so that rank 0 has written its files."""


WHOLE = Whole()


class Share(Whole):
    """The share of a rank of several.

    Parameters
    ----------
    group : Group
        It also takes arrays of numpy.
    """

    def __init__(self, group: Group) -> None:
        self.group = group
        self.rank, self.size = group.rank, group.size
        self.first = group.rank == 0
        self.recordable = getattr(group, "recordable", False)
        self.total: int | None = None  # samples of the current batch
        self.weight: Any = None  # Σ wᵢ of the last step; None for the number of samples
        self.room = Room()
        self.wishes: Any = 0.0  # interrupted ranks, as told by the last step
        self.wish = False  # whether this rank is interrupted

    def __deepcopy__(self, memo: Any) -> Share:
        return Share(self.group)

    def __reduce__(self) -> Any:
        return Whole, ()  # an unpickled trainer is alone

    # --- rows ---

    def span(self, total: int) -> range:
        return range(min(self.rank, total), total, self.size)

    def rows(self, arrays: Any, total: int) -> Any:
        own = self.span(total)
        return tree_map(lambda array: array[own.start : own.stop : own.step, ...], arrays)

    def part(self, start: int, stop: int) -> slice:
        return slice(len(self.span(start)), len(self.span(stop)))

    @contextmanager
    def batch(self, total: int) -> Iterator[None]:
        before, self.total, self.weight = self.total, total, None
        try:
            yield
        finally:
            self.total = before

    @contextmanager
    def entered(self, model: Layer, x: Any, y: Any) -> Iterator[tuple[Any, Any]]:
        if self.total is not None:
            yield x, y
            return
        total = len_of(first_of(x))
        with self.batch(total), self.pooled(model):
            yield self.rows(x, total), self.rows(y, total)

    def draw(self, rng: RandomStream, start: int, total: int) -> None:
        rng.take_share((self.rank - start) % self.size, self.size, total)

    # --- a step ---

    def loss(self, loss: CheckedLoss, prediction: Any, target: Any) -> tuple[Array, Any, Any]:
        return self.loss_of_part(loss, prediction, target, self.samples(target))

    def loss_of_part(
        self, loss: CheckedLoss, prediction: Any, target: Any, total: int
    ) -> tuple[Array, Any, Any]:
        if len_of(first_of(prediction)):
            return super().loss_of_part(loss, prediction, target, total)
        value, gradient, _ = weighted(loss, prediction, target)  # zeros
        own = counted(loss.loss, prediction, target)
        return value, gradient, None if isinstance(own, int) else own

    def hopeless(self, value: Array) -> bool:
        return False  # the others wait for the sums of this rank

    def spoiled(self, value: Array) -> bool:
        return is_lost(value)

    def samples(self, target: Any) -> int:
        assert self.total is not None
        return self.total

    def reduce(self, parameters: Sequence[Parameter], value: Array, weight: Any) -> Array:
        value, total, self.wishes = reduce_step(
            parameters, self.group, value, weight, wish=self.wish, room=self.room
        )
        self.weight = None if weight is None else total
        return value

    def counted(self, loss: Any, prediction: Any, target: Any) -> int | Array:
        assert self.total is not None
        own = counted(loss, prediction, target)
        if isinstance(own, int):
            return self.total
        if self.weight is None:  # after a step of a user's own
            self.weight = array_namespace(own).asarray(own, copy=True)
            self.group.sum_(self.weight)
        return self.weight

    # --- numbers of all ranks ---

    def gathered(self, arrays: Any) -> Any:
        return tree_map(self._gathered, arrays)

    def _gathered(self, own: Array) -> Array:
        assert self.total is not None
        xp, rows = array_namespace(own), self.span(self.total)
        boolean = dtype_name(own.dtype) == "bool"  # booleans have no sum
        with on_device_of(own):
            own = xp.astype(own, xp.int64) if boolean else own
            whole = xp.zeros((self.total, *own.shape[1:]), dtype=own.dtype, device=own.device)
            whole[rows.start : rows.stop : rows.step, ...] = own
            self.group.sum_(whole)
            return xp.astype(whole, xp.bool) if boolean else whole

    def join(self, metrics: Iterable[Metric]) -> None:
        found = [(metric, metric.addends()) for metric in metrics]
        addends = np.concatenate([np.zeros(0), *(own for _, own in found)])
        if addends.size:
            self.group.sum_(addends)
            for metric, own in found:
                sums, addends = addends[: own.size], addends[own.size :]
                if own.size:
                    metric.take_sums(sums)

    def seed(self, rng: Seed) -> int:
        seed = fresh_seed(rng)
        if isinstance(rng, int):
            return seed
        drawn = np.asarray([seed])
        self.group.broadcast_(drawn)
        return int(drawn[0])

    def known(self, text: str) -> str:
        lengths = np.zeros(self.size, np.int64)
        own = np.frombuffer(text.encode(), np.uint8).astype(np.int64)
        lengths[self.rank] = own.size
        self.group.sum_(lengths)
        if not lengths.any():
            return ""
        root = int(np.argmax(lengths > 0))
        letters = own if root == self.rank else np.zeros(int(lengths[root]), np.int64)
        self.group.broadcast_(letters, root)
        return letters.astype(np.uint8).tobytes().decode()

    # --- a fit ---

    def pooled(self, model: Layer) -> AbstractContextManager[object]:
        return pooled(model, self.group)

    def apart(self, model: Layer) -> AbstractContextManager[object]:
        return pooled(model, None)

    @contextmanager
    def together(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self.known(f"{self.rank} {on_one_line(brief(error))}")
            raise
        if failed := self.known(""):
            rank, _, text = failed.partition(" ")
            msg = f"rank {rank} has failed, and so all {self.size} end: {text}"
            raise RankError(msg)

    @contextmanager
    def quiet(self) -> Iterator[None]:
        if self.first:
            yield
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield

    def align(self, model: Layer, facts: Mapping[str, Any]) -> None:
        self.wish, self.wishes = False, 0.0
        arrays = [*model.parameters(), *(buffer for _, buffer in model.named_buffers())]
        kinds = [(tuple(p.shape), dtype_name(p.data.dtype)) for p in arrays]
        self._compare({"the model": kinds, **facts}, "give all ranks the same")
        for parameter in arrays:
            self.group.broadcast_(parameter.data)
            parameter.changed()

    def check_equal(self, model: Layer) -> None:
        state = {f"{name!r} of the model": array for name, array in model.state_dict().items()}
        self._compare(state, "something changes it on one rank alone, such as a callback")

    def _compare(self, things: Mapping[str, Any], advice: str) -> None:
        """Refuse things that differ between ranks; the error has their name."""
        table = np.zeros((self.size, len(things)), np.int64)
        table[self.rank] = [_digest(thing) for thing in things.values()]
        self.group.sum_(table)
        differs = table != table[0]
        if differs.any():
            first = int(np.argmax(differs.any(axis=0)))
            name, rank = list(things)[first], int(np.argmax(differs[:, first]))
            msg = f"{name} differs between rank 0 and rank {rank}; {advice}"
            raise RankError(msg)

    def interrupter(self, stop: Stop) -> Stop:
        def wish(reason: str) -> None:
            self.wish = True

        return wish

    def hear(self, stop: Stop, *, ask: bool) -> None:
        wishes = self.wishes
        if ask:
            wishes = np.asarray(float(self.wish))
            self.group.sum_(wishes)
        if float(to_numpy(wishes)) > 0:
            stop(INTERRUPTED)

    def meet(self) -> None:
        self.group.barrier()


def share_of(group: Group) -> Whole:
    """The share of this process."""
    return WHOLE if group.size == 1 else Share(group)


def _digest(thing: Any) -> int:
    """64 bits of an array, or of anything else by its `repr`."""
    if isinstance(thing, np.ndarray):
        data: NDArray[Any] = np.ascontiguousarray(thing)
        content = f"{data.dtype} {data.shape} ".encode() + data.tobytes()
    else:
        content = repr(thing).encode()
    import hashlib  # here, as it takes milliseconds of `import xbp`

    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little", signed=True)
