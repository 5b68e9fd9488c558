"""Parity: a layer, loss, function or optimizer on every backend, against numpy in float64."""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from xbp import accelerators
from xbp.backend import Backend, as_numbers, available_backends, brief, find_backend, on_host
from xbp.errors import InputError
from xbp.nested import tree_leaves, tree_map
from xbp.nn import Layer, Loss
from xbp.optim import Optimizer
from xbp.testing.finding import Finding, Host, compare
from xbp.testing.helpers import shown
from xbp.testing.host_sync import assert_no_host_sync
from xbp.testing.subject import Subject, as_dtype, takes_parameters
from xbp.testing.tolerances import bounds


class OnlyReferenceWarning(UserWarning):
    """Only the reference was available, so that nothing was compared with it."""


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

    The truth is computed by numpy in float64 with the reference of every primitive, from inputs
    rounded to the dtype under test. `xbp.testing.tolerances` derives the largest distance that
    rounding explains. On devices that the host must wait for (CuPy's, array_api_strict's device1),
    a hidden wait is an error as well.

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
        Makes a new, seeded subject, e.g. ``lambda: nn.Linear(3, 2, rng=0)``. If it takes an
        argument, it makes an optimizer for that list of parameters.
    *inputs : arrays, nested lists of numbers, or tuples of arrays
        Floating-point ones are converted to each dtype, and all are placed on each backend.
    backends : iterable of str, optional
        By default all that work here, including numpy.
    dtypes : iterable of str, default ("float32", "float64")
    rng : int, default 0
        Seed of the random masks and of the gradient that enters a layer's backward.
    rtol, atol : float, default 0
        Additional error: atol + rtol · the largest entry. For a user's own compiled code (Numba,
        C), whose roundings cannot be observed from Python.

    Returns
    -------
    tuple of str
        The backends that were compared with the truth.

    Raises
    ------
    AssertionError
        A result differs by more than rounding explains; the message says what, where and by how
        much. Or a layer changes its input in place, or its gradient has another shape.
    InputError
        `make` is a layer or a loss instead of a function that makes it, or its forward does not
        return (output, backward); there are no inputs, or no backends to compare.

    Warns
    -----
    OnlyReferenceWarning
        No other library works here, so that numpy was compared with itself, unless `backends`
        asks for that.

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
        subject = "the optimizer" if takes_parameters(make) else shown(make())
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
    """All comparisons of `check_parity`: a `Finding` for each quantity, backend and dtype.

    Errors on a backend become findings; errors in computing the truth are raised.

    Examples
    --------
    >>> from xbp import nn
    >>> [f.quantity for f in findings(nn.ReLU, [1.0], backends=["numpy"], dtypes=["float32"])]
    ['the output', 'the gradient of the input']
    """
    _check_make(make)
    names = _names(backends)
    host = [tree_map(as_numbers, item) for item in inputs]
    found: list[Finding] = []
    quiet: Any = None if all(map(_finite, tree_leaves(tuple(host)))) else "ignore"
    for dtype in dtypes:
        subject = Subject(
            make, [tree_map(partial(as_dtype, dtype=dtype), item) for item in host], dtype, rng
        )
        with accelerators.disabled(), np.errstate(all=quiet):
            truth = subject.on_host()
            allowed = bounds(subject.on_host, truth, dtype)
        for key, array in truth.items():
            largest = np.max(np.abs(array), initial=0.0, where=np.isfinite(array))
            allowed[key] += atol + rtol * float(largest)
        for name in names:
            backend = find_backend(name)
            try:
                with _guard(backend), np.errstate(all=quiet):
                    results = subject(name, dtype)
                found += compare(backend, dtype, results, truth, allowed)
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


def _guard(backend: Backend) -> AbstractContextManager[None]:
    """A block in which waits are errors, if the host has to wait for this backend."""
    return nullcontext() if on_host(backend.asarray(0.0)) else assert_no_host_sync()


def _check_make(make: Any) -> None:
    """Refuse an instance, and a class that needs arguments, in place of a function."""
    subject = isinstance(make, type) and issubclass(make, Layer | Loss)
    if isinstance(make, Layer | Loss | Optimizer):
        shown = repr(make).replace("\n", " ")
    elif subject and takes_parameters(make):
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


def _line(error: BaseException) -> str:
    """The innermost line of the user's code in a traceback, or else of xbp's, in words."""
    ours = Path(__file__).parent
    found = ""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if "site-packages" in path.parts or ours in path.parents or not frame.line:
            continue
        is_file = path.exists()  # a notebook's cell has lines, but no file
        place = f"{path.name}, line {frame.lineno}" if is_file else f"line {frame.lineno} of a cell"
        found = found or f" ({place})"
        if ours.parent not in path.parents:
            return f" ({place})"
    return found
