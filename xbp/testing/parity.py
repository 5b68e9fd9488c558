"""The same layer or loss on every backend, against numpy in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from xbp.backend import available_backends, dtype_name, library_of, to_numpy, use_backend
from xbp.testing.host_sync import assert_no_host_sync

Results: TypeAlias = "dict[str, NDArray[Any]]"

OWN, ROUNDINGS = 4, 16
"""A result passes when rounding explains its distance to the float64 truth. Allowed are

- OWN times the distance of numpy's result in the same dtype: another order of summation changes
  an error by a small factor, but numpy's own may be 0 by luck; so also
- ROUNDINGS times what rounding the inputs does, whatever the arithmetic: ε·max|truth| for
  rounding the result, and how far the truth moves when each input, parameter and incoming
  gradient moves by ε of itself, which is large where terms cancel."""


def check_parity(
    make: Callable[[], Any],
    *inputs: Any,
    backends: Iterable[str] | None = None,
    dtypes: Iterable[str] = ("float32", "float64"),
    rng: int = 0,
) -> None:
    """Check that a layer or a loss gives the same on several backends.

    Compared are the initial parameters (bit for bit), the output or value, the gradient of the
    input and of every parameter, all with their shape, dtype and device. On array_api_strict,
    which stands in for a GPU, a hidden wait for the device is an error.

    Parameters
    ----------
    make : callable
        Makes the layer or loss anew, e.g. ``lambda: nn.Linear(3, 2, rng=0)``; seeded.
    *inputs : arrays, or nested sequences of numbers
        For a layer x; for a loss prediction and target. Floating-point ones are converted to each
        dtype, and all are placed on each backend.
    backends : iterable of str, optional
        By default all that work here.
    dtypes : iterable of str, default ("float32", "float64")
    rng : int, default 0
        Seed of the random masks and of the gradient that enters a layer's backward.

    Raises
    ------
    AssertionError
        A result differs by more than rounding explains; it says what, where and by how much.

    Examples
    --------
    >>> from xbp import nn
    >>> check_parity(lambda: nn.Linear(2, 3, rng=0), [[1.0, 2.0]], backends=["numpy"])
    """
    names = available_backends() if backends is None else list(backends)
    host = [to_numpy(item) for item in inputs]
    for dtype in dtypes:
        rounded = [_as(item, dtype) for item in host]
        truth = _run(make, "numpy", rounded, dtype, "float64", rng)
        own = _run(make, "numpy", rounded, dtype, dtype, rng)
        epsilon = float(np.finfo(dtype).eps)
        moved = _run(make, "numpy", rounded, dtype, "float64", rng, wobble=epsilon)
        bounds = {
            key: OWN * _distance(own[key], truth[key])
            + ROUNDINGS * (epsilon * _largest(truth[key]) + _distance(moved[key], truth[key]))
            for key in truth
        }
        for name in names:
            with assert_no_host_sync() if name == "array_api_strict" else nullcontext():
                run = _run(make, name, rounded, dtype, dtype, rng, look=False)
            results = {key: to_numpy(value) for key, value in run.items()}
            _compare(f"{make()!r} on {name} in {dtype}", results, own, truth, bounds)


def _run(
    make: Callable[[], Any],
    backend: str,
    inputs: list[NDArray[Any]],
    parameters: str,
    arithmetic: str,
    rng: int,
    *,
    wobble: float = 0.0,
    look: bool = True,
) -> dict[str, Any]:
    """Everything that is compared; parameters are first rounded to one dtype, then computed with
    in another, so that the float64 truth starts from the same numbers. With `wobble`, every
    number that enters is multiplied by 1 ± wobble, at random.
    """
    noise = np.random.default_rng([rng, 2])

    def moved(array: NDArray[Any]) -> NDArray[Any]:
        if not wobble or array.dtype.kind != "f":
            return array
        return array * (1 + wobble * noise.choice([-1.0, 1.0], array.shape))

    with use_backend(backend) as place:
        subject = make()
        first, *rest = (place.asarray(moved(_as(item, arithmetic))) for item in inputs)
        results: dict[str, Any] = {}
        if hasattr(subject, "forward"):
            named = list(subject.named_parameters())
            results |= {f"the initial {key}": p.data for key, p in named}
            subject.astype(parameters).astype(arithmetic)
            if wobble:
                subject.load_state_dict({k: moved(v) for k, v in subject.state_dict().items()})
            y, backward = subject.forward(first, training=True, rng=rng)
            dy = np.random.default_rng([rng, 1]).normal(size=tuple(y.shape)).astype(np.float32)
            results["the output"] = y
            results["the gradient of the input"] = backward(
                place.asarray(moved(_as(dy, arithmetic)))
            )
            results |= {f"the gradient of {key}": p.grad for key, p in named}
        else:
            results["the value"], results["the gradient"] = subject(first, *rest)
        for key, value in results.items():
            assert library_of(value) is library_of(first) and value.device == first.device, (
                f"{subject!r} on {place}: {key} is a {type(value).__name__} elsewhere"
            )
            if not key.startswith("the initial"):
                assert dtype_name(value.dtype) == arithmetic, (
                    f"{subject!r} on {place}: {key} is {dtype_name(value.dtype)}, not {arithmetic}"
                )
        return {key: to_numpy(value) for key, value in results.items()} if look else results


def _compare(
    where: str, results: Results, own: Results, truth: Results, bounds: dict[str, float]
) -> None:
    for key, expected in truth.items():
        result = results[key]
        assert result.shape == expected.shape, (
            f"{where}: {key} has shape {result.shape} in place of {expected.shape}"
        )
        if key.startswith("the initial"):
            assert result.tobytes() == own[key].tobytes(), (
                f"{where}: {key} is not the same, bit for bit, as on numpy"
            )
            continue
        assert np.array_equal(np.isfinite(result), np.isfinite(expected)), (
            f"{where}: {key} is not finite in other places than the truth"
        )
        error, bound = _distance(result, expected), bounds[key]
        assert error <= bound, (
            f"{where}: {key} is {error:.3g} from the truth, where rounding explains {bound:.3g}"
        )


def _distance(a: NDArray[Any], b: NDArray[Any]) -> float:
    finite = np.isfinite(b)
    return float(np.max(np.abs(a[finite] - b[finite]), initial=0.0))


def _largest(array: NDArray[Any]) -> float:
    return float(np.max(np.abs(array[np.isfinite(array)]), initial=0.0))


def _as(array: NDArray[Any], dtype: str) -> NDArray[Any]:
    return array.astype(dtype) if array.dtype.kind == "f" else array
