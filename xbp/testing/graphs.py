"""CUDA graphs without a GPU: what is frozen in a recording is frozen here, too."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np

from xbp.backend import LIBRARIES, Fetch, Graph
from xbp.testing.helpers import replaced

_WAITING = ("_local_scalar_dense", "is_nonzero", "item", "equal", "allclose")
_DATA_DEPENDENT = ("nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive")


class RecordingError(RuntimeError):
    """Something that a GPU could not record."""


@contextmanager
def emulated_graphs() -> Iterator[None]:
    """Within the block, a `Trainer` records its steps on torch's CPU and array_api_strict, too.

    Torch's CPU plays a GPU. A recording is the list of its operations with all their arguments, as
    they were; a replay makes the same calls on the same memory. So a number that Python computes
    anew in each step, or what it draws or counts, is frozen as in a CUDA graph, and training with
    it differs from training without: ``Trainer(…, capture=False)``. While it is recorded, nothing
    is computed for good, and reading a value or placing an array raises `RecordingError`.

    array_api_strict, on its device1, only makes each step again, Python and all. That shows that
    steps wait for nothing (`assert_no_host_sync`), and not what is frozen.

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
        strict, torch = LIBRARIES["array_api_strict"], LIBRARIES["torch"]
        placed, fetched = strict.place, strict.fetch
        # What is placed shares memory with the host, which it does with no device.
        stack.enter_context(
            replaced(
                strict,
                graph=lambda device: _Again(),
                fetch=lambda array: _late(fetched(array), lambda: strict.to_numpy(array)),
                place=lambda xp, array, device: placed(xp, np.array(array), device),
            )
        )
        taping: list[Any] = []

        def refusing(name: str) -> Callable[..., Any]:
            original = getattr(torch, name)

            def function(*arguments: Any) -> Any:
                if taping:
                    msg = f"{name} cannot be recorded"
                    raise RecordingError(msg)
                return original(*arguments)

            return function

        place, to_numpy = refusing("place"), refusing("to_numpy")
        stack.enter_context(
            replaced(
                torch,
                graph=lambda device: _Taped(taping),
                on_host=lambda array: False,
                place=lambda xp, array, device: place(xp, np.array(array), device),
                to_numpy=to_numpy,
                fetch=lambda array: _late(Fetch(to_numpy(array).copy())),
            )
        )
        yield


def _late(found: Fetch, wait: Callable[[], object] = lambda: None) -> Fetch:
    """On its way when it is first asked for; until it has been asked twice, one has to `wait`."""
    asked: list[bool] = []

    def done() -> bool:
        asked.append(True)
        return len(asked) > 1

    return Fetch(found.host, done, lambda: None if len(asked) > 1 else wait())


class _Again(Graph):
    def record(self, function: Callable[[], object]) -> None:
        self.replay = function  # type: ignore[assignment, method-assign]


class _Taped(Graph):
    """A list of torch's operations.

    Parameters
    ----------
    taping : list
        Not empty while something is recorded.
    """

    def __init__(self, taping: list[Any]) -> None:
        self.taping = taping
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def record(self, function: Callable[[], object]) -> None:
        dispatch: Any = importlib.import_module("torch.utils._python_dispatch")
        calls, created, written = self.calls, set[int](), list[tuple[Any, Any]]()

        def called(func: Any, args: Any, keywords: Any) -> Any:
            _refuse(func, args)
            for tensor in _changed(func, args, keywords):
                if _memory(tensor) not in created:
                    written.append((tensor, tensor.clone()))
            result = func(*args, **keywords)
            if not _changed(func, args, keywords):
                known = {_memory(tensor) for tensor in _tensors((args, keywords))}
                new = [t for t in _tensors(result) if _memory(t) not in known]  # and no view
                created.update(map(_memory, new))
                calls.append((func, args, keywords, new))
            else:
                calls.append((func, args, keywords, []))
            return result

        class Tape(dispatch.TorchDispatchMode):  # type: ignore[misc]
            def __torch_dispatch__(
                self, func: Any, types: Any, args: Any = (), kwargs: Any = None
            ) -> Any:
                return called(func, args, kwargs or {})

        self.taping.append(self)
        try:
            with Tape():
                function()
        finally:
            self.taping.pop()
            for tensor, before in reversed(written):
                tensor.copy_(before)

    def replay(self) -> None:
        for func, args, keywords, results in self.calls:
            again = func(*args, **keywords)
            for tensor, value in zip(results, _tensors(again) if results else [], strict=True):
                tensor.copy_(value)


def _refuse(func: Any, args: Any) -> None:
    name = func._schema.name.partition("::")[2]
    masks = name == "index" and any(str(t.dtype) == "torch.bool" for t in _tensors(args[1]))
    if name in _WAITING or name in _DATA_DEPENDENT or masks:
        msg = f"{name} waits for the device, which cannot be recorded"
        raise RecordingError(msg)


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


def _memory(tensor: Any) -> int:
    return int(tensor.untyped_storage()._cdata)


__all__ = ["RecordingError", "emulated_graphs"]
