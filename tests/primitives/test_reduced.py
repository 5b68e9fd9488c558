"""Products in reduced precision: which factors are rounded, where, and what they add up to."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from nightly import NIGHTLY
from nn.cases import CALLS, LAYERS
from numpy.typing import NDArray

import xbp
from xbp import accelerators, models, nn, optim, primitives
from xbp.accelerators.cuda import product, short
from xbp.backend import why_unavailable
from xbp.errors import InputError
from xbp.primitives import round_to
from xbp.primitives.reduced import PRECISIONS, current_precision
from xbp.primitives.rounding import FORMATS
from xbp.testing import check_parity
from xbp.testing.cases import Case
from xbp.testing.subject import Subject

Real = NDArray[Any]
REDUCED = list(FORMATS)
OF_LAYERS = REDUCED if NIGHTLY else ["bfloat16"]
"""The formats in which all layers are tried; a format is a parameter of one rounding."""
EPS = 2.0**-24

OPERATIONS: dict[str, tuple[Any, ...]] = {  # operation, x, weight, bias, options
    "affine": (primitives.affine, (37, 90), (21, 90), 21, {}),
    "affine of sequences": (primitives.affine, (3, 7, 12), (5, 12), 5, {}),
    "affine of one sample": (primitives.affine, (12,), (5, 12), 5, {}),
    "affine, large": (primitives.affine, (64, 400), (120, 400), 120, {}),
    "convolve": (primitives.convolve, (9, 3, 11, 9), (8, 3, 3, 2), 8, {"stride": (2, 1)}),
    "convolve, with many channels": (
        *(primitives.convolve, (17, 8, 9, 8), (16, 8, 3, 3), 16),
        {"padding": (1, 1)},
    ),
    "convolve, in groups": (primitives.convolve, (3, 4, 6, 7), (6, 2, 3, 3), 6, {"groups": 2}),
    "convolve_transposed": (
        *(primitives.convolve_transposed, (3, 4, 5, 6), (4, 5, 3, 3), 5),
        {"stride": (2, 2), "padding": (1, 0)},
    ),
    "convolve1d": (primitives.convolve1d, (5, 3, 20), (7, 3, 4), 7, {"padding": (0, 2)}),
}


def results(operation: Any, arrays: Any, options: Any, dy: Any, dtype: Any) -> list[Real]:
    """On the current backend."""
    x, weight, bias = (xbp.asarray(array.astype(dtype)) for array in arrays)
    y, gradients = operation(x, weight, bias, **options)
    dy = abs(dy) if np.all(arrays[0] >= 0) else dy
    dy = dy[: y.size].reshape(y.shape).astype(dtype)
    return [xbp.to_numpy(found) for found in (y, *gradients(xbp.asarray(dy)))]


@pytest.mark.parametrize("backend", ["numpy", "cupy"])
@pytest.mark.parametrize("name", REDUCED)
@pytest.mark.parametrize("case", OPERATIONS)
def test_operations_round_their_factors_and_nothing_else(
    case: str, name: str, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against rounded arrays in float64: the sum alone errs, by n ε Σ|a||b| (Higham 2002, §3.1).

    On a GPU cuBLAS multiplies, which else takes large factors alone.
    """
    if reason := why_unavailable(backend):
        pytest.skip(reason)
    monkeypatch.setattr(short, "LEAST", 0)
    monkeypatch.setattr(product, "LEAST_LARGE", 0)
    operation, x, weight, bias, options = OPERATIONS[case]
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=shape).astype("f4") for shape in (x, weight, bias)]
    dy = rng.normal(size=10**5).astype("f4")
    with xbp.use_backend(backend), xbp.precision(name):
        found = results(operation, arrays, options, dy, "f4")
    factors = [round_to(arrays[0], name), round_to(arrays[1], name), arrays[2]]
    near = round_to(dy, name)
    truth = results(operation, factors, options, near, "f8")
    truth[3] = results(operation, factors, options, dy, "f8")[3]  # a sum, not a product
    sizes = results(operation, [abs(factor) for factor in factors], options, near, "f8")
    plain = results(operation, arrays, options, dy, "f4")
    terms = max(x[0] * 120, *x, *weight) * 9
    for index, (one, exact, size) in enumerate(zip(found, truth, sizes, strict=True)):
        assert one.dtype == np.float32
        assert np.all(abs(one - exact) <= terms * EPS * size), index
        if index < 3:  # and is not that of float32
            assert np.max(abs(plain[index] - exact) / size) > FORMATS[name].unit / 99


@pytest.fixture(params=REDUCED)
def watched(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A format; all products are by the reference of `matmul`, which checks its factors."""
    name, multiply, seen = request.param, primitives.matmul.reference, []  # type: ignore[attr-defined]

    def checked(a: Real, b: Real) -> Real:
        for factor in (a, b):
            np.testing.assert_array_equal(round_to(factor, name), factor)
        seen.append(1)
        return np.asarray(multiply(a, b))

    monkeypatch.setattr(primitives.matmul, "reference", checked)
    with accelerators.disabled():
        yield name
    assert len(seen) >= 3


WITH_PRODUCTS = [
    (nn.Linear(6, 4, rng=0), (5, 6)),
    (nn.Conv1d(2, 3, 3, rng=0), (4, 2, 9)),
    (nn.Conv2d(2, 3, 3, padding=1, rng=0), (4, 2, 6, 5)),
    (nn.ConvTranspose2d(2, 3, 3, stride=2, rng=0), (4, 2, 3, 3)),
    (nn.Sequential(nn.Conv2d(1, 2, 3, rng=0), nn.ReLU(), nn.MaxPool2d(2)), (3, 1, 6, 6)),
    (nn.Sequential(nn.Linear(5, 4, rng=0), nn.ReLU(), nn.Linear(4, 3, rng=0)), (6, 5)),
    (nn.RNN(3, 4, rng=0), (2, 5, 3)),
    (nn.LSTM(3, 4, rng=0), (2, 5, 3)),
    (nn.GRU(3, 4, rng=0), (2, 5, 3)),
    (nn.MultiheadAttention(8, 2, rng=0), (2, 5, 8)),
    (nn.TransformerBlock(8, 2, rng=0), (2, 5, 8)),
]


@pytest.mark.parametrize(("layer", "shape"), WITH_PRODUCTS, ids=lambda it: type(it).__name__)
def test_no_product_has_other_factors(layer: nn.Layer, shape: Any, watched: str) -> None:
    x = np.random.default_rng(0).normal(size=shape).astype("f4")
    with xbp.precision(watched):
        y, backward = layer.forward(x, training=True)
    backward(y)  # outside of the block, where it rounds as the forward did


def quantities(case: Case, dtype: str, backend: str = "numpy") -> dict[Any, Any]:
    found = Subject(case.make, list(case.inputs()), "float32", 0)(backend, dtype)
    return {key: xbp.to_numpy(value) for key, value in found.items()}


@pytest.mark.parametrize("name", OF_LAYERS)
@pytest.mark.parametrize("case", LAYERS, ids=str)
def test_layers_are_near_to_the_same_in_float64(case: Case, name: str) -> None:
    """Float32 may round a factor to the other neighbour, an error of two units of the format.

    In the few layers of a case it grows by less than 16, as their weights are of order one.
    """
    with xbp.precision(name):
        found, truth = quantities(case, "float32"), quantities(case, "float64")
    for key, exact in truth.items():
        if exact.dtype.kind != "f":
            continue
        largest = np.max(abs(exact), initial=1e-3)
        assert np.all(abs(found[key] - exact) <= 32 * FORMATS[name].unit * largest), key


CALLS_OF_LAYERS = [case for case in CALLS if case.kind == "layer"]
OTHERS = [name for name in ("array_api_strict", "torch") if why_unavailable(name) is None]


@pytest.mark.parametrize("backends", [OTHERS, ["cupy"]], ids=["others", "cupy"])
@pytest.mark.parametrize("name", OF_LAYERS)
@pytest.mark.parametrize("case", CALLS_OF_LAYERS[:: 1 if NIGHTLY else 2], ids=str)
def test_backends_agree(case: Case, name: str, backends: list[str]) -> None:
    """Within the bounds of float32's rounding, and what follows where a factor is rounded."""
    if backends == ["cupy"] and (reason := why_unavailable("cupy")):
        pytest.skip(reason)
    with xbp.precision(name):
        check_parity(case.make, *case.inputs(), backends=backends)


@pytest.mark.skipif("array_api_strict" not in OTHERS, reason="it plants a fault there")
@pytest.mark.parametrize("name", REDUCED)
def test_a_backend_whose_products_are_not_rounded_is_found(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = primitives.round_to.reference  # type: ignore[attr-defined]

    def here_alone(x: Any, name: str) -> Any:
        return right(x, name) if isinstance(x, np.ndarray) else x

    monkeypatch.setattr(primitives.round_to, "reference", here_alone)
    x = np.random.default_rng(0).normal(size=(4, 5))
    with xbp.precision(name), pytest.raises(AssertionError, match="array_api_strict in float32"):
        check_parity(lambda: nn.Linear(5, 3, rng=0), x, backends=["array_api_strict"])


def test_one_product_agrees_to_the_rounding_of_its_sum() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(30, 200)).astype("f4"), rng.normal(size=(200, 20)).astype("f4")
    for name in REDUCED:
        near = [round_to(factor, name).astype("f8") for factor in (a, b)]
        for backend in ("numpy", *OTHERS):
            with xbp.use_backend(backend), xbp.precision(name):
                c = xbp.to_numpy(primitives.matmul(xbp.asarray(a), xbp.asarray(b)))
            assert np.all(abs(c - near[0] @ near[1]) <= 200 * EPS * (abs(near[0]) @ abs(near[1])))


LARGE: dict[str, tuple[Any, Any]] = {
    "linear layers": (lambda: models.MLP(20, 16, 12, 4, rng=0), (40, 20)),
    "LeNet-5": (lambda: models.LeNet5(rng=0), (8, 1, 28, 28)),
    "RNN": (lambda: nn.RNN(8, 16, rng=0), (16, 12, 8)),
    "LSTM": (lambda: nn.LSTM(8, 16, rng=0), (16, 12, 8)),
    "GRU": (lambda: nn.GRU(8, 16, rng=0), (16, 12, 8)),
    "attention": (lambda: nn.MultiheadAttention(32, 4, causal=True, rng=0), (4, 24, 32)),
}


@pytest.mark.parametrize("name", REDUCED)
@pytest.mark.parametrize("model", LARGE)
def test_no_compiled_kernel_is_left_with_other_factors(model: str, name: str) -> None:
    """The references' numbers, but for rare factors that are rounded to the other neighbour."""
    make, shape = LARGE[model]
    x = np.random.default_rng(0).normal(size=shape).astype("f4")

    def run(precision: str) -> list[Real]:
        layer = make()
        with xbp.precision(precision):
            y, backward = layer.forward(x, training=True)
            dx = backward(np.cos(y))
        return [y, dx, *(p.grad for p in layer.parameters())]

    found, plain = run(name), run("float32")
    with accelerators.disabled():
        expected = run(name)
    for one, right, wrong in zip(found, expected, plain, strict=True):
        off, away = (np.sqrt(np.mean((it - right) ** 2)) for it in (one, wrong))
        assert off < 0.2 * away


# --- blocks --------------------------------------------------------------------------------------


def test_blocks_nest_and_end_with_errors() -> None:
    assert current_precision() == "float32"
    with xbp.precision("tf32"):
        with xbp.precision("bfloat16"):
            assert current_precision() == "bfloat16"
        with xbp.precision("float32"):
            assert current_precision() == "float32"
        with pytest.raises(ZeroDivisionError), xbp.precision("float16"):
            raise ZeroDivisionError
        assert current_precision() == "tf32"
    assert current_precision() == "float32"
    assert xbp.registry._open == []


def test_another_thread_has_a_precision_of_its_own() -> None:
    x, seen = np.full((1, 1), 1.001, "f4"), []
    with xbp.precision("bfloat16"):
        thread = threading.Thread(target=lambda: seen.append(primitives.matmul(x, x)))
        thread.start()
        thread.join()
        assert primitives.matmul(x, x) == 1
    assert seen[0] == x * x


@pytest.mark.parametrize("name", ["half", "float64", "BFLOAT16", "", None, 16])
def test_an_unknown_name_is_one_sentence(name: Any) -> None:
    wanted = "precision must be one of 'float32', 'tf32', 'float16', 'bfloat16', got "
    with pytest.raises(InputError, match=re.escape(wanted)), xbp.precision(name):
        pass
    model = nn.Linear(1, 1)
    with pytest.raises(InputError, match=re.escape(wanted)):
        xbp.Trainer(model, nn.MSELoss(), optim.SGD(model.parameters(), 0.1), precision=name)


def test_all_names_are_taken() -> None:
    for name in PRECISIONS:
        with xbp.precision(name):
            assert current_precision() == name


def test_muon_updates_in_full_precision() -> None:
    def updated(name: str) -> Real:
        layer = nn.Linear(8, 8, rng=0)
        optimizer = optim.Muon([layer.weight], lr=0.1)
        layer.weight.add_grad(np.random.default_rng(0).normal(size=(8, 8)).astype("f4"))
        with xbp.precision(name):
            optimizer.step()
        return layer.weight.data

    np.testing.assert_array_equal(updated("bfloat16"), updated("float32"))
