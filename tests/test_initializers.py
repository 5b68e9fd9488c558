"""Initial weights: the variance and range of each paper, and one seed for all backends."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from numpy.random import default_rng
from numpy.typing import NDArray

import xbp
from xbp import initializers, nn
from xbp.backend import backend_of
from xbp.errors import InputError
from xbp.testing.cases import INITIALIZERS

SHAPE = (120, 40, 5, 3)  # fan_in = 600, fan_out = 1800
FAN_IN, FAN_OUT = 600, 1800
VARIANCES = {
    law: {
        line.name: line.variance(FAN_IN, FAN_OUT)
        for line in INITIALIZERS
        if line.law == law and line.variance
    }
    for law in ("uniform", "normal")
}
UNIFORM, NORMAL = VARIANCES["uniform"], VARIANCES["normal"]
# n = 72,000 draws of one seed. 4.5 standard deviations hold with probability 1 - 7e-6 for a
# correct distribution; at this n they allow the variance an error of 2.4 % at most.
SIGMAS = 4.5


def draw(name: str, shape: tuple[int, ...] = SHAPE, seed: int = 0, **options: Any) -> Any:
    return getattr(initializers, name)(shape, default_rng(seed), **options)


def assert_variance(drawn: NDArray[Any], variance: float, kurtosis: float) -> None:
    """Mean 0 and this variance; `kurtosis` is E[x⁴]/E[x²]², 9/5 if uniform and 3 if normal."""
    n = drawn.size
    assert abs(drawn.mean()) < SIGMAS * math.sqrt(variance / n)
    error = abs((drawn * drawn).mean() / variance - 1)
    assert error < SIGMAS * math.sqrt((kurtosis - 1) / n)


@pytest.mark.parametrize(("name", "variance"), UNIFORM.items())
def test_uniform_weights_have_the_variance_and_the_range_of_their_paper(
    name: str, variance: float
) -> None:
    drawn = draw(name)
    assert drawn.shape == SHAPE
    assert drawn.dtype == np.float64
    assert_variance(drawn, variance, kurtosis=9 / 5)
    bound = math.sqrt(3 * variance)
    # The bound may be one rounding off; the gap below it is exponential with a mean
    # of bound/n: 12 of those are exceeded with probability 6e-6.
    assert np.abs(drawn).max() <= bound * (1 + 1e-15)
    assert np.abs(drawn).max() > bound * (1 - 12 / drawn.size)


@pytest.mark.parametrize(("name", "variance"), NORMAL.items())
def test_normal_weights_have_the_variance_of_their_paper(name: str, variance: float) -> None:
    drawn = draw(name)
    assert drawn.shape == SHAPE
    assert drawn.dtype == np.float64
    assert_variance(drawn, variance, kurtosis=3.0)
    scaled = drawn / math.sqrt(variance)
    assert abs((scaled**4).mean() - 3) < SIGMAS * math.sqrt(96 / drawn.size)  # Var x⁴ = 105 - 9
    assert 3.5 < np.abs(scaled).max() < 6.5  # not truncated: the maximum of 72,000 is about 4.3


@pytest.mark.parametrize(
    ("name", "option", "value", "factor"),
    [
        ("uniform", "bound", 0.25, 0.25),
        ("normal", "std", 0.25, 0.25),
        ("xavier_uniform", "gain", 5 / 3, 5 / 3),
        ("xavier_normal", "gain", 5 / 3, 5 / 3),
        ("he_uniform", "gain", 1.0, math.sqrt(0.5)),
        ("he_normal", "gain", 1.0, math.sqrt(0.5)),
    ],
)
def test_an_option_scales_the_weights(name: str, option: str, value: float, factor: float) -> None:
    options: dict[str, Any] = {option: value}
    expected = factor * draw(name)
    # A few roundings of numbers as large as the largest: numpy draws low + (high - low) u.
    tolerance = 1e-15 * np.abs(expected).max()
    np.testing.assert_allclose(draw(name, **options), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize(("name", "variance"), NORMAL.items())
def test_normal_weights_are_standard_normal_numbers_scaled(name: str, variance: float) -> None:
    expected = math.sqrt(variance) * default_rng(0).standard_normal(SHAPE)
    np.testing.assert_allclose(draw(name), expected, rtol=1e-15)  # two roundings


@pytest.mark.parametrize("name", [*UNIFORM, *NORMAL, "orthogonal"])
def test_weights_are_drawn_in_float64(name: str) -> None:
    drawn = draw(name)
    assert drawn.dtype == np.float64
    assert np.mean(drawn == drawn.astype(np.float32)) < 0.01


def test_what_is_given_is_given_on_in_float64() -> None:
    assert draw("constant", (2,), value=0.1).tolist() == [0.1, 0.1]
    assert {draw(name, (2,)).dtype for name in ("zeros", "constant")} == {np.dtype("float64")}
    drawn = draw("map_by_map", (6, 2), inputs=(2, 4), init=initializers.uniform)
    assert drawn.dtype == np.float64 and np.all(drawn != drawn.astype(np.float32))


@pytest.mark.parametrize("shape", [(6, 6), (4, 9), (9, 4), (3, 2, 5, 5)])
def test_orthogonal_weights_are_q_of_a_decomposition_with_positive_diagonal(
    shape: tuple[int, ...],
) -> None:
    q = draw("orthogonal", shape).reshape(shape[0], -1)
    q = q.T if q.shape[0] < q.shape[1] else q
    r = q.T @ default_rng(0).normal(size=q.shape)
    np.testing.assert_allclose(q.T @ q, np.eye(q.shape[1]), rtol=0, atol=1e-14)
    assert np.all(np.diagonal(r) > 0)
    assert np.abs(np.tril(r, -1)).max() < 1e-14  # sums of at most 50 products of order 1


@pytest.mark.parametrize("shape", [(6, 6), (4, 9), (9, 4), (3, 2, 5, 5), (64, 2, 3, 3)])
def test_orthogonal_weights_have_orthonormal_rows_or_columns(shape: tuple[int, ...]) -> None:
    drawn = draw("orthogonal", shape, gain=3.0)
    assert drawn.shape == shape
    assert drawn.dtype == np.float64
    q = drawn.reshape(shape[0], -1) / 3
    products = q @ q.T if q.shape[0] <= q.shape[1] else q.T @ q
    np.testing.assert_allclose(products, np.eye(min(q.shape)), rtol=0, atol=1e-14)
    # Rows (or columns) of length 1 make the mean square 1/max exactly.
    assert (q * q).mean() == pytest.approx(1 / max(q.shape), rel=1e-14)


def test_orthogonal_weights_favour_no_direction() -> None:
    """The signs matter: a QR decomposition by reflections has no positive diagonal entries.

    For a uniform 2 × 2 matrix the entry [0, 0] is cos of a uniform angle: mean 0, variance 1/2;
    the determinant is 1 or -1 at probability 1/2.
    """
    rng = default_rng(0)
    drawn = np.stack([initializers.orthogonal((2, 2), rng) for _ in range(4000)])
    for mean in (*drawn.mean(axis=0).ravel(), np.linalg.det(drawn).mean() * math.sqrt(0.5)):
        assert abs(mean) < SIGMAS * math.sqrt(0.5 / 4000)


def test_the_weights_of_lenet5_have_the_range_of_their_paper() -> None:
    """LeCun, Bottou, Bengio & Haffner 1998, appendix A: U(-2.4/fan_in, 2.4/fan_in)."""
    drawn = draw("lenet_uniform")
    bound = 2.4 / FAN_IN
    assert_variance(drawn, bound**2 / 3, kurtosis=9 / 5)
    assert bound * (1 - 12 / drawn.size) < np.abs(drawn).max() <= bound * (1 + 1e-15)
    assert np.array_equal(draw("lenet_uniform", SHAPE, fan_in=300, bound=1.2), drawn)


def test_maps_with_different_inputs_are_drawn_with_fans_of_their_own() -> None:
    inputs = (2, 50, 9)
    drawn = draw("map_by_map", (61, 5, 5), inputs=inputs, init=initializers.fan_in_uniform)
    assert drawn.shape == (61, 5, 5)
    for kernels, n in zip(np.split(drawn, [2, 52]), inputs, strict=True):
        bound = 1 / math.sqrt(25 * n)
        assert bound * (1 - 12 / kernels.size) < np.abs(kernels).max() <= bound


def test_constants_are_everywhere_and_draw_nothing() -> None:
    rng = default_rng(0)
    assert np.all(initializers.constant((2, 3), rng, value=0.5) == 0.5)
    assert np.all(initializers.constant((2, 3), rng) == 0)
    assert initializers.zeros((3,), rng).tolist() == [0.0, 0.0, 0.0]
    assert rng.random() == default_rng(0).random()


@pytest.mark.parametrize(
    ("shape", "expected"), [((4, 3), (3, 4)), ((16, 6, 5, 5), (150, 400)), ((2, 3, 7), (21, 14))]
)
def test_fans_count_the_terms_of_a_sum(shape: tuple[int, ...], expected: tuple[int, int]) -> None:
    assert initializers.fans(shape) == expected


NEED_FANS = [name for name in (*UNIFORM, *NORMAL) if name not in ("uniform", "normal")]
NEED_FANS += ["orthogonal"]


@pytest.mark.parametrize("name", NEED_FANS)
@pytest.mark.parametrize("shape", [(5,), ()])
def test_a_bias_has_no_fans_and_is_refused_in_one_sentence(
    name: str, shape: tuple[int, ...]
) -> None:
    with pytest.raises(InputError) as caught:
        draw(name, shape)
    assert "\n" not in str(caught.value)
    assert str(shape) in str(caught.value)


def test_a_bias_is_given_the_fan_in_of_its_weight() -> None:
    drawn = draw("fan_in_uniform", (10_000,), fan_in=25)
    assert 0.199 < np.abs(drawn).max() <= 0.2


# --- in layers -----------------------------------------------------------------------------------

# PyTorch documents U(-√k, √k) with k = 1/in_features, and k = 1/(in_channels · kh · kw), for both
# the weight and the bias.
LAYERS: list[tuple[Callable[..., nn.Layer], int]] = [
    (partial(nn.Linear, 64, 700), 64),
    (partial(nn.Conv2d, 3, 400, (5, 7)), 3 * 5 * 7),
]


@pytest.mark.parametrize(("make", "fan_in"), LAYERS)
@pytest.mark.parametrize("which", ["weight", "bias"])
def test_layers_draw_by_default_as_pytorch_documents(
    make: Callable[..., nn.Layer], fan_in: int, which: str
) -> None:
    drawn = make(rng=0, dtype="float64").state_dict()[which]
    bound = 1 / math.sqrt(fan_in)
    assert np.abs(drawn).max() <= bound
    assert np.abs(drawn).max() > bound * (1 - 12 / drawn.size)  # as above
    assert_variance(drawn, bound**2 / 3, kurtosis=9 / 5)


@pytest.mark.parametrize(("make", "fan_in"), LAYERS)
def test_weight_and_bias_are_drawn_one_after_the_other(
    make: Callable[..., nn.Layer], fan_in: int
) -> None:
    rng = default_rng(3)
    first, second = make(rng=rng).state_dict(), make(rng=rng).state_dict()
    assert first["weight"].reshape(-1)[0] != first["bias"][0]
    assert not np.any(first["weight"] == second["weight"])
    again = default_rng(3)
    assert np.array_equal(make(rng=again).state_dict()["bias"], first["bias"])
    assert np.array_equal(make(rng=again).state_dict()["bias"], second["bias"])


@pytest.mark.parametrize(("make", "fan_in"), LAYERS)
def test_a_seed_gives_the_same_weights_and_none_gives_others(
    make: Callable[..., nn.Layer], fan_in: int
) -> None:
    weight = make(rng=5).state_dict()["weight"]
    assert np.array_equal(make(rng=5).state_dict()["weight"], weight)
    assert np.array_equal(make(rng=default_rng(5)).state_dict()["weight"], weight)
    assert not np.array_equal(make(rng=6).state_dict()["weight"], weight)
    assert not np.array_equal(make().state_dict()["weight"], make().state_dict()["weight"])


@pytest.mark.parametrize(("make", "fan_in"), LAYERS)
@pytest.mark.parametrize("backend", xbp.available_backends())
def test_every_backend_has_the_same_weights_and_float32_has_them_rounded(
    backend: str, make: Callable[..., nn.Layer], fan_in: int
) -> None:
    with xbp.use_backend("numpy"):
        reference = make(rng=7, dtype="float64").state_dict()
    with xbp.use_backend(backend) as here:
        double, single = make(rng=7, dtype="float64"), make(rng=7)
    for layer, dtype in ((double, "float64"), (single, "float32")):
        for name, array in layer.state_dict().items():
            assert array.dtype == dtype
            assert array.tobytes() == reference[name].astype(dtype).tobytes()
        assert all(backend_of(p.data) == here for p in layer.parameters())


@pytest.mark.parametrize("make", [make for make, _ in LAYERS])
def test_an_initializer_and_its_options_are_given_by_partial(
    make: Callable[..., nn.Layer],
) -> None:
    layer = make(
        rng=0,
        dtype="float64",
        weight_init=partial(initializers.he_normal, gain=1.0),
        bias_init=partial(initializers.constant, value=0.25),
    )
    state = layer.state_dict()
    expected = initializers.he_normal(state["weight"].shape, default_rng(0), gain=1.0)
    assert np.array_equal(state["weight"], expected)
    assert np.all(state["bias"] == 0.25)


def test_a_function_of_ones_own_is_an_initializer() -> None:
    def ramp(shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[Any]:
        return np.arange(math.prod(shape)).reshape(shape)

    layer = nn.Linear(3, 2, weight_init=ramp, bias_init=initializers.zeros)
    assert layer.state_dict()["weight"].tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
    assert layer.state_dict()["bias"].tolist() == [0.0, 0.0]
