"""Emulated CUDA graphs, without a GPU, which freeze the same values."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xbp.backend import LIBRARIES, Fetch, Graph
from xbp.testing.cupy_rules import RULES, WAIT, Rule
from xbp.testing.helpers import replaced
from xbp.testing.strict_devices import as_strict_as_cupy, current, memory
from xbp.testing.strictness import THREAD, RecordingError, inside, refuse, replaced_functions
from xbp.testing.values import arrays


@contextmanager
def emulated_graphs() -> Iterator[None]:
    """Within the block, a `Trainer` also records its steps on array_api_strict and torch's CPU.

    Both emulate a GPU with CuPy. A recording is the list of operations with all their arguments; a
    replay makes the same calls on the same memory. So values that Python computes, draws or counts
    anew in each step are frozen as in a CUDA graph, and training with them differs from training
    with ``Trainer(…, capture=False)``. Recording computes nothing: arrays that it creates hold
    garbage until the first replay.

    Operations that CuPy cannot record raise `RecordingError`, by the table of
    `xbp.testing.cupy_rules`: waits, uploads, and products outside `xbp.primitives`. The recording
    stays open; but a wait for a transfer ends it, and `record` raises even if that error is caught.

    array_api_strict also behaves as in `as_strict_as_cupy`; only calls of its namespace and methods
    of its arrays are recorded. Of torch every operation is recorded.

    Raises
    ------
    BackendError
        array_api_strict is not installed.

    Examples
    --------
    >>> import numpy as np
    >>> import xbp
    >>> from xbp import nn, optim
    >>> from xbp.testing import emulated_graphs
    >>> def losses(capture):
    ...     model = nn.Sequential(nn.Linear(2, 4, rng=0), nn.Dropout(0.5), nn.Linear(4, 1, rng=1))
    ...     adam = optim.Adam(model.parameters())
    ...     trainer = xbp.Trainer(model, nn.MSELoss(), adam, rng=0, capture=capture)
    ...     x = np.ones((8, 2), np.float32)
    ...     return trainer.fit(x, x[:, :1], epochs=2, batch_size=2)["loss"]
    >>> with xbp.use_backend("array_api_strict"), emulated_graphs():
    ...     losses(capture=True) == losses(capture=False)
    True
    """
    with ExitStack() as stack:
        stack.enter_context(as_strict_as_cupy())
        strict = LIBRARIES["array_api_strict"]
        fetched = strict.fetch
        stack.enter_context(
            replaced(
                strict,
                graph=lambda device: Emulated(Tape(_strict_memory), current, device),
                fetch=lambda array: _late(fetched(array), lambda: strict.to_numpy(array)),
            )
        )
        if importlib.util.find_spec("torch"):
            for owner, attributes in _torch():
                stack.enter_context(replaced(owner, **attributes))
        yield


def _late(found: Fetch, wait: Callable[[], object] = lambda: None) -> Fetch:
    """A transfer that is finished at the second query, or after a `wait`."""
    asked: list[bool] = []

    def kills(name: str) -> None:
        if THREAD.tape is not None:
            THREAD.tape.dead = True
            refuse(Rule(WAIT), name, "what was fetched")

    def done() -> bool:
        kills("done")
        asked.append(True)
        return len(asked) > 1

    def waited() -> object:
        kills("wait")
        return None if len(asked) > 1 else wait()

    return Fetch(found.host, done, waited)


class Emulated(Graph):
    """A graph made of a tape.

    Parameters
    ----------
    tape : Tape
    on : callable
        Makes the device of the graph the current one for a block, like `CuPyGraph`.
    device
    """

    def __init__(
        self, tape: Tape, on: Callable[[Any], AbstractContextManager[None]], device: Any
    ) -> None:
        self.tape, self.on, self.device = tape, on, device

    def warm_up(self, function: Callable[[], object]) -> None:
        with self.on(self.device):
            function()

    def record(self, function: Callable[[], object]) -> None:
        with self.on(self.device):
            self.tape.record(function)

    def replay(self) -> None:
        with inside():
            self.tape.replay()


Memory = Callable[[Any], "list[tuple[int, NDArray[Any]]]"]
"""All arrays in nested containers, with the memory block and the values of each."""


class Tape:
    """Recorded calls, and the memory that they read and write.

    Parameters
    ----------
    memory : callable
    listening : callable
        Makes a block in which operations are passed to `take`.
    """

    def __init__(
        self,
        memory: Memory,
        listening: Callable[[Tape], AbstractContextManager[Any]] = lambda tape: nullcontext(),
    ) -> None:
        self.memory, self.listening = memory, listening
        # functions, arguments, results, and the arrays of the results in new memory
        self.calls: list[tuple[Any, Any, Any, Any, list[tuple[int, NDArray[Any]]]]] = []
        self.blocks = set[int]()  # memory blocks allocated in the recording
        self.written: list[tuple[NDArray[Any], NDArray[Any]]] = []  # earlier memory, old values
        self.dead = False

    def record(self, function: Callable[[], object]) -> None:
        """Record the calls of `function`, and undo their effects.

        Raises
        ------
        RecordingError
            An operation cannot be recorded, or `function` has waited for the device.
        """
        THREAD.tape = self
        try:
            with self.listening(self):
                function()
        finally:
            THREAD.tape = None
            for values, before in reversed(self.written):
                values[...] = before
            for *_, new in self.calls:
                for _, values in new:
                    values[...] = garbage(values.dtype)
            self.written.clear()
        if self.dead:
            msg = "the recording was ended by a wait for the device"
            raise RecordingError(msg)

    def take(self, function: Any, args: Any, keywords: Any, changed: Any) -> Any:
        """Call a function, and record the call; `changed` are the arguments that it writes to."""
        for block, values in self.memory(changed):
            if block not in self.blocks:
                self.written.append((values, values.copy()))
        args, keywords = _frozen(args), _frozen(keywords)
        result = function(*args, **keywords)
        new: list[tuple[int, NDArray[Any]]] = []
        if not changed:
            known = {block for block, _ in self.memory((args, keywords))}
            for place, (block, values) in enumerate(self.memory(result)):
                if block not in known:
                    self.blocks.add(block)
                    new.append((place, values))
        # Results are kept alive, so that no address is used twice.
        self.calls.append((function, args, keywords, result, new))
        return result

    def replay(self) -> None:
        for function, args, keywords, _, new in self.calls:
            again = function(*args, **keywords)
            if new:
                made = self.memory(again)
                for place, values in new:
                    values[...] = made[place][1]


def garbage(dtype: np.dtype[Any]) -> Any:
    """The content of unwritten memory: nan, True, or an integer that is no index."""
    return np.nan if dtype.kind in "fc" else dtype.kind == "b" or np.iinfo(dtype).max


def _frozen(tree: Any) -> Any:
    """Copies of containers and numpy arrays."""
    if isinstance(tree, dict):
        return {name: _frozen(part) for name, part in tree.items()}
    if type(tree) in (list, tuple):
        return type(tree)(map(_frozen, tree))
    return tree.copy() if isinstance(tree, np.ndarray) else tree


def _strict_memory(tree: Any) -> list[tuple[int, NDArray[Any]]]:
    return [(memory(array), array._array) for array in arrays(tree)]


# --- torch ---------------------------------------------------------------------------------------

_WAITING = ("_local_scalar_dense", "is_nonzero", "item", "equal", "allclose")
_DATA_DEPENDENT = ("nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive")


def _torch() -> list[tuple[Any, dict[str, Any]]]:
    """Owners, and their attributes to replace."""
    library: Any = LIBRARIES["torch"]
    xp = library.namespace()
    placed, to_numpy = library.place, library.to_numpy

    def read(array: Any) -> Any:
        refuse(Rule(WAIT), "to_numpy", "a torch tensor")
        return to_numpy(array)

    refused = [name for name, rules in RULES.items() if rules]
    kind = importlib.import_module("torch").Tensor
    return [
        *replaced_functions(xp, kind, _whose, _call, refused),
        (
            library,
            {
                "graph": lambda device: Emulated(
                    Tape(_torch_memory, _listening), lambda device: nullcontext(), device
                ),
                "on_host": lambda array: False,
                # A copy, as a device shares no memory with the host.
                "place": lambda xp, array, device: placed(xp, np.array(array), device),
                "to_numpy": read,
                "fetch": lambda array: _late(Fetch(to_numpy(array).copy())),
            },
        ),
    ]


def _whose(tree: Any) -> str:
    return "a torch tensor" if _tensors(tree) else ""


def _call(name: str, original: Any, args: Any, keywords: Any) -> Any:
    return original(*args, **keywords)


def _listening(tape: Tape) -> Any:
    dispatch: Any = importlib.import_module("torch.utils._python_dispatch")

    class Listening(dispatch.TorchDispatchMode):  # type: ignore[misc]
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            _refuse(func, args)
            return tape.take(func, args, kwargs or {}, _changed(func, args, kwargs or {}))

    return Listening()


def _refuse(func: Any, args: Any) -> None:
    """Waits that are not in the table."""
    name = func._schema.name.partition("::")[2]
    masks = name == "index" and any(str(t.dtype) == "torch.bool" for t in _tensors(args[1]))
    if name in _WAITING or name in _DATA_DEPENDENT or masks:
        refuse(Rule(WAIT), name, "a torch tensor")


def _changed(func: Any, args: Any, keywords: Any) -> list[Any]:
    """The tensors that an operation writes to."""
    found = []
    for index, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[index] if index < len(args) else keywords.get(argument.name)
            found += _tensors(value)
    return found


def _tensors(tree: Any) -> list[Any]:
    if isinstance(tree, dict):
        tree = list(tree.values())
    if isinstance(tree, list | tuple):
        return [tensor for part in tree for tensor in _tensors(part)]
    return [tree] if hasattr(tree, "untyped_storage") else []


def _torch_memory(tree: Any) -> list[tuple[int, NDArray[Any]]]:
    return [(int(t.untyped_storage()._cdata), t.detach().numpy()) for t in _tensors(tree)]


__all__ = ["RecordingError", "emulated_graphs"]
