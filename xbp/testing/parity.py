"""The same layer, loss, function or optimizer on every backend, against numpy in float64."""

from __future__ import annotations

import inspect
import math
import threading
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

import xbp.random
from xbp import accelerators
from xbp.arguments import described, name_of
from xbp.backend import (
    Backend,
    as_numbers,
    available_backends,
    brief,
    dtype_name,
    find_backend,
    library_of,
    on_host,
    to_numpy,
    use_backend,
    whereabouts,
)
from xbp.errors import InputError
from xbp.nn import Layer, Loss
from xbp.nn.backward import run_forward
from xbp.nn.parameter import Parameter
from xbp.optim import Optimizer
from xbp.testing.helpers import check_unchanged, copies, each, leaves, numbered, replaced
from xbp.testing.host_sync import assert_no_host_sync
from xbp.testing.tolerances import bounds

Host: TypeAlias = "NDArray[Any]"
Quantity: TypeAlias = "tuple[str, str]"
"""What it is, and its direction."""

Quantities: TypeAlias = "dict[Quantity, Any]"


INVISIBLE = 1e-30
"""A bound below this says that no rounding was seen, where there is an error to explain."""


class OnlyReferenceWarning(UserWarning):
    """A comparison of backends in which there was none to compare with the reference."""


@dataclass(frozen=True)
class Finding:
    """What one quantity came to on one backend.

    Attributes
    ----------
    backend, dtype : str
    quantity : str
        ``"the output"``, ``"the gradient of weight"``, ``"random draw 0"``,
        ``"m of the parameter after 3 steps"``, …
    direction : str
        ``"forward"``, ``"backward"``, ``"state"`` or ``"bits"``.
    error, bound : float
        Largest distance to the float64 truth, and what rounding explains of it (see
        `xbp.testing.tolerances`).
    problem : str
        Empty, or one sentence about what is wrong besides the error: a dtype, shape or device,
        bits that differ, a hidden wait, a crash.
    """

    backend: str
    dtype: str
    quantity: str
    direction: str
    error: float
    bound: float
    problem: str = ""

    @property
    def units(self) -> float:
        """The error in units of its bound: at most 1 passes."""
        return 0.0 if self.error == 0 else self.error / self.bound if self.bound else math.inf

    @property
    def passed(self) -> bool:
        return not self.problem and self.units <= 1

    def __str__(self) -> str:
        what = self.problem or (
            f"{self.quantity} is {self.error:.3g} from the truth, "
            f"where rounding explains {self.bound:.3g}"
        )
        if not self.problem and self.bound < INVISIBLE:
            what += " (roundings within compiled code are not seen; rtol=… allows for them)"
        return f"on {self.backend} in {self.dtype}, {what}"


def check_parity(
    make: Callable[..., Any],
    *inputs: Any,
    backends: Iterable[str] | None = None,
    dtypes: Iterable[str] = ("float32", "float64"),
    rng: int = 0,
    rtol: float = 0.0,
    atol: float = 0.0,
) -> tuple[str, ...]:
    """Check that a layer, a loss, a function or an optimizer gives the same on several backends.

    The truth is numpy in float64, by the reference version of every primitive, from the same
    numbers, rounded to the dtype under test. How far rounding may take a result from it is worked
    out in `xbp.testing.tolerances`. On a device whose values the host cannot read for free, as
    array_api_strict's device1 or CuPy's, a hidden wait is an error, too.

    ==============  ===========================  ==============================================
    `make` makes    `inputs`                     compared
    ==============  ===========================  ==============================================
    a layer         x, or a tuple of arrays      initial parameters and every draw of random
                                                 bits (bit for bit), output, gradients of input
                                                 and parameters
    a loss          prediction, target           value and gradient
    a function      its arguments                what it returns, an array or a tuple; bit for
    of arrays                                    bit what is not floating-point, and everything
                                                 if there are no arguments
    an optimizer    the initial parameter, then  parameter and state after the last step
                    the gradient of each step
    ==============  ===========================  ==============================================

    Everything must have the shape that it has on numpy, the dtype under test, and lie on the
    backend's device.

    Parameters
    ----------
    make : callable
        Makes the subject anew, e.g. ``lambda: nn.Linear(3, 2, rng=0)``; seeded. If it takes an
        argument, it makes an optimizer for that list of parameters.
    *inputs : arrays, nested lists of numbers, or tuples of arrays
        Floating-point ones are converted to each dtype, and all are placed on each backend.
    backends : iterable of str, optional
        By default all that work here, numpy among them.
    dtypes : iterable of str, default ("float32", "float64")
    rng : int, default 0
        Seed of the random masks and of the gradient that enters a layer's backward.
    rtol, atol : float, default 0
        What a result may err by beside rounding: atol + rtol · its largest entry. For code of
        one's own that is compiled (Numba, C), whose roundings nobody can see from Python.

    Returns
    -------
    tuple of str
        The backends that were compared with the truth.

    Raises
    ------
    AssertionError
        A result differs by more than rounding explains; it says what, where and by how much. Or a
        layer changes in place what it is given, or its gradient has not the shape of the input.
    InputError
        `make` is a layer or a loss in place of what makes it, or its forward does not return
        (output, backward); there are no inputs, or no backends to compare.

    Warns
    -----
    OnlyReferenceWarning
        No other library works here, so that numpy alone was compared with itself. (Not where
        `backends` says that it is meant.)

    Examples
    --------
    >>> from xbp import nn, optim, primitives
    >>> check_parity(lambda: nn.Linear(2, 3, rng=0), [[1.0, 2.0]], backends=["numpy"])
    ('numpy',)
    >>> check_parity(lambda: primitives.erf, [0.1, 2.0], backends=["numpy"])
    ('numpy',)
    >>> adam = lambda parameters: optim.Adam(parameters, lr=0.1)
    >>> check_parity(adam, [1.0, 2.0], [0.1, -3.0], [0.2, 3.0], backends=["numpy"])
    ('numpy',)
    """
    names = _names(backends)
    wrong = [
        finding
        for finding in findings(
            make, *inputs, backends=names, dtypes=dtypes, rng=rng, rtol=rtol, atol=atol
        )
        if not finding.passed
    ]
    if wrong:
        subject = "the optimizer" if _takes_parameters(make) else repr(make())
        raise AssertionError("; ".join([f"{subject}: {wrong[0]}", *map(str, wrong[1:])]))
    if backends is None and names == ("numpy",):
        msg = (
            "check_parity compared numpy with itself, as no other array library works here: what "
            "only numpy can do would pass; pip install array-api-strict gives it a strict one"
        )
        warnings.warn(msg, OnlyReferenceWarning, stacklevel=2)
    return names


def findings(
    make: Callable[..., Any],
    *inputs: Any,
    backends: Iterable[str] | None = None,
    dtypes: Iterable[str] = ("float32", "float64"),
    rng: int = 0,
    rtol: float = 0.0,
    atol: float = 0.0,
) -> list[Finding]:
    """Everything that `check_parity` compares, one `Finding` a quantity, backend and dtype.

    Whatever goes wrong on a backend is in the findings. What goes wrong in computing the truth,
    where there is nothing to compare with, is raised.

    Examples
    --------
    >>> from xbp import nn
    >>> [f.quantity for f in findings(nn.ReLU, [1.0], backends=["numpy"], dtypes=["float32"])]
    ['the output', 'the gradient of the input']
    """
    _check_make(make)
    names = _names(backends)
    host = [each(as_numbers, item) for item in inputs]
    found: list[Finding] = []
    quiet: Any = None if all(map(_finite, leaves(tuple(host)))) else "ignore"
    for dtype in dtypes:
        run = _Run(make, [each(partial(_as, dtype=dtype), item) for item in host], dtype, rng)
        with accelerators.disabled(), np.errstate(all=quiet):
            truth = run.on_host()
            allowed = bounds(run.on_host, truth, dtype)
        for key, array in truth.items():
            largest = np.max(np.abs(array), initial=0.0, where=np.isfinite(array))
            allowed[key] += atol + rtol * float(largest)
        for name in names:
            backend = find_backend(name)
            try:
                with _guard(backend), np.errstate(all=quiet):
                    results = run(name, dtype)
                found += _compare(backend, dtype, results, truth, allowed)
            except Exception as error:
                problem = f"the run fails with {brief(error)}{_line(error)}"
                found.append(Finding(name, dtype, "the run", "forward", 0.0, 0.0, problem))
    return found


def _names(backends: Iterable[str] | None) -> tuple[str, ...]:
    names = tuple(available_backends() if backends is None else backends)
    if isinstance(backends, str) or not names:
        what = repr(backends) if isinstance(backends, str) else "none"
        msg = f"check_parity compares the backends of a list, as ['numpy', 'torch']; got {what}"
        raise InputError(msg)
    return names


def _finite(array: Host) -> bool:
    return array.dtype.kind not in "fc" or bool(np.all(np.isfinite(array)))


def _same(array: Any) -> Any:
    """Without rounding errors made on purpose."""
    return array


@dataclass
class _Run:
    """Computes everything that is compared, on a backend, in an arithmetic.

    Parameters are first rounded to the dtype under test, then computed with in `arithmetic`, so
    that the float64 truth starts from the same numbers.
    """

    make: Callable[..., Any]
    inputs: list[Any]
    dtype: str
    rng: int

    def __call__(
        self, backend: str, arithmetic: str, wrap: Callable[[Any], Any] = _same
    ) -> Quantities:
        draws: list[Any] = []
        random_bits = vars(xbp.random)["random_bits"]

        thread = threading.get_ident()

        def recorded(*arguments: Any, **keywords: Any) -> Any:
            bits = random_bits(*arguments, **keywords)
            if threading.get_ident() == thread:  # not the draws of somebody's training meanwhile
                draws.append(bits)
            return bits

        with use_backend(backend) as place, replaced(xbp.random, random_bits=recorded):

            def put(array: Host) -> Any:
                return wrap(place.asarray(_as(array, arithmetic).copy()))

            inputs = [each(put, item) for item in self.inputs]
            if _takes_parameters(self.make):
                results = dict(self.optimizer(*inputs))
            elif hasattr(subject := self.make(), "forward"):
                if not inputs:
                    msg = "check_parity needs inputs, as in check_parity(make, x)"
                    raise InputError(msg)
                x = inputs[0] if len(inputs) == 1 else tuple(inputs)
                results = dict(self.layer(subject, x, arithmetic, put, wrap))
            elif callable(subject):
                results = dict(self.function(subject, *inputs))
            else:
                msg = (
                    f"check_parity: {name_of(self.make)} made {described(subject)}; return a layer"
                )
                raise InputError(msg)
        return {(f"random draw {i}", "bits"): bits for i, bits in enumerate(draws)} | results

    def on_host(self, rounded: Callable[[Host], Any] = _same) -> dict[Quantity, Host]:
        """The truth, or the truth disturbed."""
        results = self("numpy", "float64", rounded)
        return {key: to_numpy(value).copy() for key, value in results.items()}

    def layer(
        self, layer: Any, x: Any, arithmetic: str, put: Callable[[Host], Any], wrap: Any
    ) -> Iterator[tuple[Quantity, Any]]:
        named = list(layer.named_parameters())
        for name, parameter in named:
            yield (f"the initial {name}", "bits"), parameter.data
        layer.astype(self.dtype).astype(arithmetic)
        for _, parameter in named:
            parameter.data = wrap(parameter.data)
        looked_at = wrap is _same and isinstance(leaves(x)[0], np.ndarray)
        before = copies(x) if looked_at else []
        y, backward = run_forward(layer, x, training=True, rng=self.rng)
        check_unchanged(layer, "forward", "input", before, x)
        noise = np.random.default_rng([self.rng, 1])

        def incoming(part: Any) -> Any:  # a float32, which every arithmetic holds exactly
            return put(noise.normal(size=tuple(part.shape)).astype(np.float32).astype(float))

        dy = each(incoming, y)
        given = copies(dy) if looked_at else []
        dx = backward(dy)
        check_unchanged(layer, "backward", "input", before, x)
        check_unchanged(layer, "backward", "gradient", given, dy)
        shapes = [getattr(part, "shape", None) for part in leaves(dx)]
        assert not looked_at or shapes == [part.shape for part in leaves(x)], (
            f"{layer!r}: its backward must return ∂L/∂x, of the shape of the input, "
            f"{' and '.join(str(tuple(part.shape)) for part in leaves(x))}; it returned "
            f"{' and '.join(map(described, leaves(dx)))}"
        )
        for name, part in zip(numbered("the output", y), leaves(y), strict=True):
            yield (name, "forward"), part
        for name, part in zip(numbered("the input", x), leaves(dx), strict=True):
            yield (f"the gradient of {name}", "backward"), part
        for name, parameter in named:
            if parameter.grad is not None:
                yield (f"the gradient of {name}", "backward"), parameter.grad

    def function(self, function: Any, *inputs: Any) -> Iterator[tuple[Quantity, Any]]:
        result = function(*inputs)
        if _is_loss(result, inputs):
            yield ("the value", "forward"), result[0]
            yield ("the gradient", "backward"), result[1]
            return
        for name, array in zip(numbered("the output", result), leaves(result), strict=True):
            if not inputs and isinstance(array, np.ndarray):  # drawn on the host, for any backend
                array = xbp.asarray(_as(array, self.dtype))
            exact = not inputs or dtype_name(array.dtype) not in ("float32", "float64")
            yield (name, "bits" if exact else "forward"), array

    def optimizer(self, start: Any, *gradients: Any) -> Iterator[tuple[Quantity, Any]]:
        parameters = [Parameter(array) for array in leaves(start)]
        optimizer = self.make(parameters)
        for gradient in gradients:
            for parameter, g in zip(parameters, leaves(gradient), strict=True):
                parameter.zero_grad()
                parameter.add_grad(g)
            optimizer.step()
        after = f"after {len(gradients)} steps"
        states = getattr(optimizer, "state", [{}] * len(parameters))
        names = numbered("the parameter", start)
        for name, parameter, state in zip(names, parameters, states, strict=True):
            yield (f"{name} {after}", "state"), parameter.data
            for key, array in state.items():
                yield (f"{key} of {name} {after}", "state"), array


def _compare(
    backend: Backend,
    dtype: str,
    results: Quantities,
    truth: dict[Quantity, Host],
    allowed: dict[Quantity, float],
) -> Iterator[Finding]:
    for key in [*truth, *(key for key in results if key not in truth)]:
        (quantity, direction), error, bound = key, 0.0, 0.0
        expected, result = truth.get(key), results.get(key)
        problem = _misfit(backend, dtype, direction, expected, result)
        if not problem and expected is not None:
            host = to_numpy(result)
            if direction == "bits":
                if host.tobytes() != expected.tobytes():
                    problem = "is not the same, bit for bit, as on numpy"
            elif not np.array_equal(np.isfinite(host), np.isfinite(expected)):
                problem = "is not finite in other places than the truth"
            elif not np.array_equal(_ends(host), _ends(expected), equal_nan=True):
                problem = "has other infinities, or nan in other places, than the truth"
            else:
                error, bound = _distance(host, expected), allowed[key]
        yield Finding(
            backend.name,
            dtype,
            quantity,
            direction,
            error,
            bound,
            f"{quantity} {problem}" if problem else "",
        )


def _misfit(backend: Backend, dtype: str, direction: str, expected: Any, result: Any) -> str:
    """What is wrong with a result before anyone looks at its values."""
    if expected is None:
        return "does not exist on numpy"
    if result is None:
        return "exists on numpy only"
    library = library_of(result)
    if library is None or library.name != backend.name or result.device != backend.device:
        return f"is on {whereabouts(result)} in place of {backend}"
    wanted = dtype_name(expected.dtype) if direction == "bits" else dtype
    if dtype_name(result.dtype) != wanted:
        return f"is {dtype_name(result.dtype)} in place of {wanted}"
    if tuple(result.shape) != expected.shape:
        return f"has shape {tuple(result.shape)} in place of {expected.shape}"
    return ""


def _guard(backend: Backend) -> AbstractContextManager[None]:
    """Waits are errors where the host cannot read values for free."""
    return nullcontext() if on_host(backend.asarray(0.0)) else assert_no_host_sync()


def _check_make(make: Any) -> None:
    """Refuse what has been made already, and a class that cannot be made without arguments."""
    subject = isinstance(make, type) and issubclass(make, Layer | Loss)
    if isinstance(make, Layer | Loss | Optimizer):
        shown = repr(make).replace("\n", " ")
    elif subject and _takes_parameters(make):
        shown = f"{make.__name__}(…)"
    elif not callable(make):
        shown = "nn.ReLU()"
    else:
        return
    kind = make.__name__ if isinstance(make, type) else type(make).__name__
    msg = (
        f"check_parity takes a function that makes its subject anew for each backend, as "
        f"lambda: {shown}; got {kind}"
    )
    raise InputError(msg)


def _takes_parameters(make: Callable[..., Any]) -> bool:
    """Whether `make` needs an argument, so that it makes an optimizer."""
    try:
        signature = inspect.signature(make)
    except ValueError:  # some builtins have none
        return False
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return any(p.default is p.empty and p.kind in positional for p in signature.parameters.values())


def _is_loss(result: Any, inputs: tuple[Any, ...]) -> bool:
    """A 0-d value and a gradient of the first input's shape."""
    return (
        isinstance(result, tuple)
        and len(result) == 2
        and getattr(result[0], "ndim", None) == 0
        and getattr(result[1], "shape", None) == getattr(inputs[0], "shape", ())
    )


def _line(error: BaseException) -> str:
    """Where, in code that is neither a library's nor a check's."""
    ours = Path(__file__).parent
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if "site-packages" not in path.parts and ours not in path.parents and path.exists():
            return f" ({path.name}, line {frame.lineno})"
    return ""


def _ends(array: Host) -> Host:
    """Infinities and nan, where they are; 0 elsewhere."""
    return np.where(np.isfinite(array), 0, array)


def _distance(a: Host, b: Host) -> float:
    finite = np.isfinite(b)
    return float(np.max(np.abs(a[finite].astype(float) - b[finite]), initial=0.0))


def _as(array: Host, dtype: str) -> Host:
    return array.astype(dtype) if array.dtype.kind == "f" else array
