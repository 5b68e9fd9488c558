"""The check of an answer: each array against the right one, then gradients, extremes, backends."""

from __future__ import annotations

import ast
import importlib.util
import sys
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from xbp.arguments import described
from xbp.errors import DataError, InputError, brief
from xbp.homework.exercise import Exercise, Truths
from xbp.homework.hints import Hint, close, diagnose
from xbp.homework.table import EXERCISES
from xbp.nn import Parameter
from xbp.nn.backward import run_forward
from xbp.testing import OnlyReferenceWarning, check_gradients, check_parity
from xbp.testing.helpers import replaced

VAGUE = {"crash", "shape", "unknown"}
"""Kinds of hints that give way to another one from a later case."""


@dataclass(frozen=True)
class Answer:
    """What was found of one class.

    Attributes
    ----------
    exercise, file : str
    passed : list of str
        What is right.
    hints : list of Hint
        What is wrong; none if all is right.
    """

    exercise: str
    file: str
    passed: list[str] = field(default_factory=list)
    hints: list[Hint] = field(default_factory=list)

    @property
    def right(self) -> bool:
        """Whether nothing is wrong."""
        return not self.hints

    def as_dict(self) -> dict[str, Any]:
        """All of it, as JSON has it."""
        return {**asdict(self), "right": self.right}


class _Stop(Exception):  # noqa: N818
    """The case cannot go on; its hint says why."""

    def __init__(self, hint: Hint) -> None:
        super().__init__(str(hint))
        self.hint = hint


def check_file(path: Path | str, exercises: Mapping[str, Exercise] = EXERCISES) -> list[Answer]:
    """Import a file, and check each class that is the answer to an exercise.

    The file is run: it can do what its writer wanted. `xbp homework check` runs it in a process of
    its own, with a time limit, which is no protection against ill will.

    Raises
    ------
    DataError
        There is no such file.
    """
    path = Path(path)
    if not path.is_file():
        msg = f"there is no file {path}"
        raise DataError(msg)
    wanted = {exercise.wanted: exercise for exercise in exercises.values()}
    defined = _classes(path)
    if not defined & set(wanted):
        named = exercises.get(path.stem)
        missing = named.wanted if named else " or ".join(wanted)
        hint = Hint("the file", "contract", f"it has no class {missing}")
        return [Answer(path.stem, str(path), hints=[hint])]
    try:
        module = imported(path)
    except Exception as error:
        hint = Hint("the file", "crash", f"it cannot be imported: {brief(error)}")
        return [Answer(path.stem, str(path), hints=[hint])]
    return [
        check(exercise, getattr(module, name), str(path))
        for name, exercise in wanted.items()
        if name in defined
    ]


def _classes(path: Path) -> set[str]:
    """The classes that a file defines; none where it cannot be parsed."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, ValueError):
        return {exercise.wanted for exercise in EXERCISES.values() if exercise.name == path.stem}
    return {node.name for node in tree.body if isinstance(node, ast.ClassDef)}


def imported(path: Path) -> Any:
    """A Python file as a module."""
    spec = importlib.util.spec_from_file_location(f"homework_{path.stem}", path)
    if spec is None or spec.loader is None:
        msg = f"{path} is no Python file"
        raise InputError(msg)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def check(exercise: Exercise, cls: type, file: str = "") -> Answer:
    """Check a class as the answer to an exercise."""
    run = {"layer": _layer, "loss": _loss, "optimizer": _optimizer}[exercise.kind]
    found: dict[str, Hint | None] = {}
    for inputs in exercise.cases:
        right = exercise.right(*_copied(inputs))
        try:
            for quantity, hint in run(exercise, cls, inputs, right):
                _note(found, quantity, hint)
        except _Stop as stop:
            _note(found, stop.hint.quantity, stop.hint)
    passed = [quantity for quantity, hint in found.items() if hint is None]
    hints = [hint for hint in found.values() if hint is not None]
    if not hints:
        for name, hint in _further(exercise, cls):
            (passed if hint is None else hints).append(name if hint is None else hint)  # type: ignore[arg-type]
    if any(hint.kind not in VAGUE for hint in hints):  # an exception has the same cause
        hints = [hint for hint in hints if hint.kind != "crash"]
    return Answer(exercise.name, file, passed, hints)


def _note(found: dict[str, Hint | None], quantity: str, hint: Hint | None) -> None:
    """Keep the most telling hint of a quantity."""
    old = found.get(quantity)
    telling = old is None or (old.kind in VAGUE and hint is not None and hint.kind not in VAGUE)
    if quantity not in found or (hint is not None and telling):
        found[quantity] = hint


def _copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: array.copy() for name, array in value.items()}
    return tuple(_copied(part) for part in value) if isinstance(value, tuple) else value.copy()


def _crash(quantity: str, error: BaseException) -> Hint:
    """The hint for an exception in a student's code."""
    text = brief(error)
    if isinstance(error, NotImplementedError) or "NotImplemented" in text:
        return Hint(quantity, "contract", "it is not written yet")
    if isinstance(error, InputError):
        return Hint(quantity, "contract", text)
    if "matmul" in text or "not aligned" in text or "core dimension" in text:
        return Hint(quantity, "transpose", f"the arrays of a product do not fit: {text}")
    if "broadcast" in text:
        return Hint(quantity, "shape", f"shapes do not fit: {text}")
    return Hint(quantity, "crash", text)


# --- the three kinds -----------------------------------------------------------------------------


def _layer(
    exercise: Exercise, cls: type, inputs: tuple[Any, ...], right: Truths
) -> Iterator[tuple[str, Hint | None]]:
    x, delta, values = _copied(inputs)
    layer = _made(exercise, cls, inputs)
    named = dict(layer.named_parameters())
    for name, value in values.items():
        if name not in named:
            raise _Stop(Hint("the class", "contract", f"it has no Parameter called {name!r}"))
        if named[name].shape != value.shape:
            sentence = f"its shape is {named[name].shape}, and should be {value.shape}"
            raise _Stop(Hint(name, "shape", sentence))
        named[name].data = value
    given: dict[int, list[Any]] = {}

    def record(parameter: Parameter, gradient: Any) -> None:
        given.setdefault(id(parameter), []).append(gradient)

    called = exercise.called
    try:
        y, backward = run_forward(layer, x, training=True, rng=0)
    except Exception as error:
        raise _Stop(_crash(called("output"), error)) from error
    yield called("output"), diagnose(called("output"), y, right["output"])
    failure: Hint | None = None
    dx = None
    with replaced(Parameter, add_grad=record):
        try:
            dx = backward(delta)
        except Exception as error:
            failure = _crash("the backward", error)
    for name in values:
        parts = given.get(id(named[name]), [])
        assigned = named[name].grad
        quantity = called(name)
        if parts:
            yield quantity, diagnose(quantity, _total(parts), right[name])
        elif assigned is not None:
            hint = diagnose(quantity, assigned, right[name])
            sentence = "it replaces the gradient of other uses; add it, by add_grad"
            yield quantity, hint or Hint(quantity, "sum", sentence)
        elif failure is None:
            yield quantity, Hint(quantity, "chain", "the backward does not compute it")
    if failure is not None:
        raise _Stop(failure)
    if dx is None:
        sentence = "the backward must return it, and returns None"
        yield called("input"), Hint(called("input"), "contract", sentence)
    else:
        yield called("input"), diagnose(called("input"), dx, right["input"])
    for what, array, before in (("input", x, inputs[0]), ("gradient", delta, inputs[1])):
        if not np.array_equal(array, before):
            sentence = f"it changes its {what} in place; compute a new array"
            yield "the inputs", Hint("the inputs", "contract", sentence)


def _total(parts: list[Any]) -> Any:
    return parts[0] if len(parts) == 1 else np.sum(np.stack(parts), axis=0)


def _loss(
    exercise: Exercise, cls: type, inputs: tuple[Any, ...], right: Truths
) -> Iterator[tuple[str, Hint | None]]:
    loss, called = _made(exercise, cls, inputs), exercise.called
    try:
        result = loss(*_copied(inputs))
    except Exception as error:
        raise _Stop(_crash(called("value"), error)) from error
    if not isinstance(result, tuple) or len(result) != 2:
        sentence = f"it must return (value, gradient), and returns {described(result)}"
        raise _Stop(Hint("the loss", "contract", sentence))
    for name, array in zip(("value", "gradient"), result, strict=True):
        yield called(name), diagnose(called(name), array, right[name])


def _optimizer(
    exercise: Exercise, cls: type, inputs: tuple[Any, ...], right: Truths
) -> Iterator[tuple[str, Hint | None]]:
    start, *gradients = _copied(inputs)
    parameter = Parameter(start.copy())
    optimizer = _made(exercise, cls, ([parameter],))
    changes = []
    for gradient in gradients:
        before = parameter.data.copy()
        parameter.add_grad(gradient)
        try:
            optimizer.step()
        except Exception as error:
            raise _Stop(_crash("the step", error)) from error
        optimizer.zero_grad()
        changes.append(parameter.data - before)
    truths = list(right.values())
    variants = zip(*(truth.mistakes for truth in truths), strict=True)
    if not all(close(change, truth.value) for change, truth in zip(changes, truths, strict=True)):
        for variant in variants:
            pairs = zip(changes, variant, strict=True)
            if all(close(change, mistake) for change, (_, _, mistake) in pairs):
                kind, sentence, _ = variant[0]
                yield "the step", Hint("the step", kind, sentence)
                return
    for name, change, truth in zip(right, changes, truths, strict=True):
        hint = diagnose(exercise.called(name), change, truth)
        yield exercise.called(name), hint
        if hint is not None:
            return  # the next steps start from here


def _made(exercise: Exercise, cls: type, inputs: tuple[Any, ...]) -> Any:
    try:
        made = exercise.make(cls, *inputs)
        return made.astype("float64") if exercise.kind == "layer" else made
    except Exception as error:
        raise _Stop(_crash("the constructor", error)) from error


# --- what a right answer must also do ------------------------------------------------------------


def _further(exercise: Exercise, cls: type) -> Iterator[tuple[str, Hint | None]]:
    """Gradients against numeric ones, extreme inputs, other backends."""
    inputs = exercise.cases[0]
    if exercise.kind != "optimizer":
        subject = exercise.make(cls, *inputs)
        given = inputs[:1] if exercise.kind == "layer" else inputs
        yield _tried("numeric derivatives", "unknown", lambda: check_gradients(subject, *given))
    if exercise.extreme is not None:
        yield "large numbers", _of_extremes(exercise, cls)
    yield _tried("other backends", "device", lambda: _parity(exercise, cls))


def _tried(name: str, kind: str, run: Any) -> tuple[str, Hint | None]:
    try:
        run()
    except Exception as error:
        return name, Hint(name, kind, brief(error))
    return name, None


def _of_extremes(exercise: Exercise, cls: type) -> Hint | None:
    subject = exercise.make(cls, *exercise.cases[0])
    inputs = _copied(exercise.extreme)
    sentence = "for inputs of 1000 an exponential overflows"
    try:
        with np.errstate(all="ignore", over="raise"):
            result = subject.forward(*inputs)[:1] if exercise.kind == "layer" else subject(*inputs)
    except FloatingPointError:
        return Hint("large numbers", "overflow", sentence)
    finite = all(np.all(np.isfinite(part)) for part in result)
    return None if finite else Hint("large numbers", "overflow", f"{sentence}: it is not finite")


def _parity(exercise: Exercise, cls: type) -> None:
    inputs = exercise.cases[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", OnlyReferenceWarning)
        if exercise.kind == "layer":
            check_parity(lambda: _seeded(exercise, cls), inputs[0])
        elif exercise.kind == "loss":
            check_parity(lambda: exercise.make(cls), *inputs)
        else:
            check_parity(lambda parameters: exercise.make(cls, parameters), *inputs)


def _seeded(exercise: Exercise, cls: type) -> Any:
    """A layer whose parameters have the same values each time, on the current backend."""
    layer = exercise.make(cls, *exercise.cases[0])
    for name, parameter in layer.named_parameters():
        parameter.assign(exercise.cases[0][2][name])
    return layer
