"""Normalization, by PyTorch's definitions: behaviour that the table of cases does not cover."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import xbp
from xbp import nn, optim
from xbp.errors import InputError
from xbp.parallel.groups import Alone
from xbp.testing import assert_no_host_sync, check_gradients, emulated_graphs
from xbp.training import Checkpoints, LambdaCallback

seeds = st.integers(0, 2**32 - 1).map(np.random.default_rng)
small = st.integers(1, 5)


# --- PyTorch -------------------------------------------------------------------------------------


@st.composite
def batch_norms(draw: st.DrawFn) -> tuple[str, tuple[Any, ...], tuple[int, ...]]:
    axes = draw(st.sampled_from([2, 3, 4]))
    shape = (draw(st.integers(2, 6)), *(draw(small) for _ in range(axes - 1)))
    options = (
        *(draw(st.sampled_from([1e-5, 1e-2])), draw(st.sampled_from([0.1, 0.3, 1.0, None]))),
        *(draw(st.booleans()), draw(st.booleans())),
    )
    return f"BatchNorm{max(axes - 2, 1)}d", (shape[1], *options), shape


@st.composite
def layer_norms(draw: st.DrawFn) -> tuple[str, tuple[Any, ...], tuple[int, ...]]:
    name = draw(st.sampled_from(["LayerNorm", "RMSNorm"]))
    shape = tuple(draw(small) for _ in range(draw(st.integers(2, 4))))
    last = shape[draw(st.integers(1, len(shape) - 1)) :]
    eps: list[Any] = [1e-5, 1e-2, *[None] * (name == "RMSNorm")]
    options = (draw(st.sampled_from(eps)), draw(st.booleans()))
    bias = (draw(st.booleans()),) if name == "LayerNorm" else ()
    return name, (last, *options, *bias), shape


@st.composite
def group_norms(draw: st.DrawFn) -> tuple[str, tuple[Any, ...], tuple[int, ...]]:
    groups, size, n = draw(small), draw(small), draw(st.integers(2, 5))
    shape = (n, groups * size, *(draw(small) for _ in range(draw(st.integers(0, 2)))))
    eps, affine = draw(st.sampled_from([1e-5, 1e-2])), draw(st.booleans())
    return "GroupNorm", (groups, groups * size, eps, affine), shape


def equal(mine: Any, theirs: Any, what: str) -> None:
    """Float64 keeps 16 digits; a variance near ε costs some of them."""
    theirs = theirs.detach().numpy()
    assert mine.shape == theirs.shape and str(mine.dtype) == str(theirs.dtype), what
    np.testing.assert_allclose(
        mine, theirs, rtol=1e-10, atol=1e-10 * np.max(np.abs(theirs), initial=1.0), err_msg=what
    )


@given(st.one_of(batch_norms(), layer_norms(), group_norms()), seeds, st.booleans())
def test_it_is_pytorchs_over_several_steps(case: Any, rng: Any, training: bool) -> None:
    torch = pytest.importorskip("torch")
    name, arguments, shape = case
    theirs = getattr(torch.nn, name)(*arguments).double().train(training)
    ours = getattr(nn, name)(*arguments, dtype="float64")
    for value in theirs.state_dict().values():
        if value.is_floating_point():
            value.copy_(torch.tensor(rng.uniform(0.5, 1.5, value.shape)))
    ours.load_state_dict(theirs.state_dict())  # with num_batches_tracked, as it is
    for step in range(3):
        x, dy = rng.normal(3, 2, shape), rng.normal(size=shape)
        y, backward = ours.forward(x, training=training)
        dx = backward(dy)
        tensor = torch.tensor(x, requires_grad=True)
        expected = theirs(tensor)
        expected.backward(torch.tensor(dy))
        equal(y, expected, f"output {step}")
        equal(dx, tensor.grad, f"gradient of the input {step}")
        names = [name for name, _ in theirs.named_parameters()]
        assert [name for name, _ in ours.named_parameters()] == names
        for (key, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
            equal(p.grad, q.grad, f"gradient of {key} {step}")
        state = ours.state_dict()
        assert list(state) == list(theirs.state_dict())
        for key, value in theirs.state_dict().items():
            equal(state[key], value, f"{key} {step}")
    theirs.load_state_dict({key: torch.from_numpy(value) for key, value in state.items()})


@pytest.mark.parametrize(
    "make",
    [
        lambda m, **d: m.BatchNorm2d(2, **d),
        lambda m, **d: m.LayerNorm((2, 2), **d),
        lambda m, **d: m.RMSNorm((2, 2), **d),
        lambda m, **d: m.GroupNorm(1, 2, **d),
    ],
)
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("training", [True, False])
def test_what_is_not_finite_ends_where_it_does_in_pytorch(
    make: Callable[..., Any], value: float, training: bool
) -> None:
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(0).normal(size=(3, 2, 2, 2))
    x[1, 0, 1, 0] = value
    theirs, ours = make(torch.nn).double().train(training), make(nn, dtype="float64")
    tensor = torch.tensor(x, requires_grad=True)
    expected = theirs(tensor)
    expected.backward(torch.ones_like(expected))
    with np.errstate(invalid="ignore"):
        y, backward = ours.forward(x, training=training)
        backward(np.ones_like(y))
    np.testing.assert_allclose(y, expected.detach().numpy(), rtol=1e-12)
    for key, value_ in theirs.state_dict().items():
        np.testing.assert_allclose(ours.state_dict()[key], value_.numpy(), rtol=1e-12)


# --- numbers that are hard -----------------------------------------------------------------------

EACH: list[tuple[Callable[[], nn.Layer], tuple[int, ...]]] = [
    (lambda: nn.BatchNorm1d(3), (512, 3)),
    (lambda: nn.LayerNorm(512), (3, 512)),
    (lambda: nn.GroupNorm(1, 4), (3, 4, 128)),
]


@pytest.mark.parametrize(("make", "shape"), EACH)
@pytest.mark.parametrize("offset", [1e6, -1e7])
def test_a_large_offset_costs_no_digits(
    make: Callable[[], nn.Layer], shape: tuple[int, ...], offset: float
) -> None:
    """The normalization of an array of even numbers around 10⁷, which float32 represents."""
    x = (np.random.default_rng(0).integers(-8, 9, shape) * 2.0 + offset).astype("float32")
    y, backward = make().forward(x, training=True)
    dy = np.random.default_rng(1).normal(size=shape).astype("float32")
    dx = backward(dy)
    exact = make().astype("float64")
    expected, exactly = exact.forward(x.astype("float64"), training=True)
    # 512 numbers are summed, with a rounding of 6e-8 each; a mean that is off by a rounding of
    # its own size costs a hundred times as much.
    np.testing.assert_allclose(y, expected, rtol=0, atol=512 * 6e-8)
    np.testing.assert_allclose(dx, exactly(dy.astype("float64")), rtol=0, atol=512 * 6e-8)


@pytest.mark.parametrize(("make", "shape"), EACH)
@pytest.mark.parametrize("value", [0.0, 0.1, 1234567.1, -3e30])
def test_numbers_that_are_all_equal_become_0(
    make: Callable[[], nn.Layer], shape: tuple[int, ...], value: float
) -> None:
    y, backward = make().forward(np.full(shape, value, "float32"), training=True)
    assert np.all(y == 0)
    dx = backward(np.random.default_rng(0).normal(size=shape).astype("float32"))
    assert np.all(np.isfinite(dx))


def test_the_mean_of_running_statistics_is_as_good() -> None:
    n = 4096  # in one sum of float32, the mean is 3e-5 of its size off
    x = (np.random.default_rng(0).normal(size=(n, 2)) + 1e6).astype("float32")
    layer = nn.BatchNorm1d(2, momentum=1.0)
    nn.update_statistics(layer, x)
    exact = x.astype("float64")
    np.testing.assert_allclose(layer.running_mean.data, exact.mean(axis=0), rtol=6e-8)
    np.testing.assert_allclose(layer.running_var.data, exact.var(axis=0, ddof=1), rtol=n * 6e-8)


@pytest.mark.parametrize("value", [np.inf, -np.inf])
def test_an_infinite_mean_stays(value: float) -> None:
    layer, x = nn.BatchNorm1d(2, momentum=1.0), np.ones((3, 2), np.float32)
    x[1, 0] = value
    with np.errstate(invalid="ignore"):
        nn.update_statistics(layer, x)
    assert layer.running_mean.data.tolist() == [value, 1.0]


# --- statistics ----------------------------------------------------------------------------------


def images(n: int = 4) -> Any:
    return np.random.default_rng(n).normal(2, 3, size=(n, 2, 3, 3)).astype("float32")


def kept(layer: nn.Layer) -> dict[str, Any]:
    return {name: xbp.to_numpy(b.data).tolist() for name, b in layer.named_buffers()}


def test_statistics_move_once_for_each_forward_with_a_backward() -> None:
    layer, x = nn.BatchNorm2d(2), images()
    start = kept(layer)
    y, backward = layer.forward(x, training=True)
    _, inferred = layer.forward(x)
    inferred(np.ones_like(y))
    assert kept(layer) == start
    nn.for_parameters(backward)(np.ones_like(y))
    once = kept(layer)
    assert once["num_batches_tracked"] == 1
    np.testing.assert_allclose(once["running_mean"], 0.1 * x.mean(axis=(0, 2, 3)), rtol=1e-6)
    backward(np.ones_like(y))  # a second gradient of the same batch
    assert kept(layer) == once


def test_a_layer_that_is_used_twice_takes_in_both_batches() -> None:
    layer = nn.BatchNorm2d(2, momentum=None)
    model = nn.Sequential(layer, nn.ReLU(), layer)
    y, backward = model.forward(images(), training=True)
    backward(np.ones_like(y))
    assert kept(layer)["num_batches_tracked"] == 2
    middle = nn.ReLU()(nn.BatchNorm2d(2, track_running_stats=False)(images()))
    both = (images().mean(axis=(0, 2, 3)) + middle.mean(axis=(0, 2, 3))) / 2
    np.testing.assert_allclose(layer.running_mean.data, both, rtol=1e-5)


class Doubled(Alone):
    """A group of two processes that have the same rows."""

    def sum_(self, array: Any) -> None:
        array *= 2


@pytest.mark.parametrize("run", [lambda backward: backward, nn.for_parameters])
def test_two_equal_shares_are_the_batch_twice_and_nothing_waits(run: Any) -> None:
    pytest.importorskip("array_api_strict")
    x = images().astype("float64")
    whole, half = (nn.BatchNorm2d(2, dtype="float64") for _ in range(2))
    nn.pool_statistics(half, Doubled())
    twice, backward = whole.forward(np.concat([x, x]), training=True)
    run(backward)(np.cos(twice))
    half.to("array_api_strict")
    with xbp.use_backend("array_api_strict"):
        rows = xbp.asarray(x)
        dy = xbp.asarray(np.cos(twice[:4]))
        with assert_no_host_sync():
            y, backward = half.forward(rows, training=True)
            run(backward)(dy)
    # Sums of 72 numbers of order 10 in another order.
    close = {"rtol": 1e-12, "atol": 1e-12}
    np.testing.assert_allclose(xbp.to_numpy(y), twice[:4], **close)
    np.testing.assert_allclose(2 * xbp.to_numpy(half.weight.grad), whole.weight.grad, **close)
    for name, value in kept(whole).items():
        np.testing.assert_allclose(kept(half)[name], value, **close, err_msg=name)
    variance = 0.9 + 0.1 * np.concat([x, x]).var(axis=(0, 2, 3), ddof=1)
    np.testing.assert_allclose(kept(half)["running_var"], variance, **close)


def test_an_inference_backward_outlives_a_step_of_the_statistics() -> None:
    layer, x = nn.BatchNorm2d(2, dtype="float64"), images().astype("float64")
    dy = np.random.default_rng(0).normal(size=x.shape)
    alone = layer.forward(x)[1](dy)
    _, backward = layer.forward(x)
    nn.update_statistics(layer, x)
    assert np.array_equal(backward(dy), alone)


class Evaluated(nn.Layer):
    """The inference of a layer, for checks that call it in training."""

    def __init__(self, layer: nn.Layer) -> None:
        self.layer = layer

    def forward(self, x: Any, *, training: bool = False, rng: Any = None) -> Any:
        return self.layer.forward(x, training=False)


def test_gradients_of_inference_and_of_statistics_that_are_not_kept() -> None:
    for options in ({}, {"affine": False}, {"track_running_stats": False}):
        layer = nn.BatchNorm2d(2, **options)
        nn.update_statistics(layer, images(7))
        check_gradients(Evaluated(layer), images())


def test_one_sample_is_enough_in_inference() -> None:
    x = np.array([[1.0, 2.0]])
    assert nn.BatchNorm1d(2, dtype="float64")(x).shape == (1, 2)
    untracked = nn.BatchNorm1d(2, track_running_stats=False, dtype="float64")
    assert untracked(x).tolist() == [[0, 0]]
    assert nn.BatchNorm1d(2, dtype="float64")(x[:0]).shape == (0, 2)


# --- training ------------------------------------------------------------------------------------


def network(momentum: float | None = None) -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(2, 3, 2, bias=False, rng=0), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten()),
        *(nn.Linear(12, 4, rng=1), nn.BatchNorm1d(4, momentum=momentum), nn.LayerNorm(4)),
        nn.Linear(4, 3, rng=2),
    )


def data(n: int = 22) -> tuple[Any, Any]:
    x = images(n)
    return x, (x[:, 0, 0, 0] > 2).astype("int64") + (x[:, 1, 1, 1] > 2)


def trainer_of(model: nn.Layer, **options: Any) -> xbp.Trainer:
    optimizer = optim.Adam(model.parameters(), lr=0.01)
    return xbp.Trainer(model, nn.CrossEntropyLoss(), optimizer, ["accuracy"], rng=3, **options)


def bits(model: nn.Layer) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in model.state_dict().items()}


def test_a_network_learns_and_is_judged_by_its_running_statistics() -> None:
    model = network(momentum=0.1)
    trainer = trainer_of(model)
    x, y = data(200)
    history = trainer.fit(x, y, epochs=20, batch_size=20)
    assert history["loss"][-1] < 0.5 * history["loss"][0]
    before = bits(model)
    found = trainer.evaluate(x, y)
    assert found["accuracy"] > 0.7  # the largest class has 44 %
    assert found["loss"] < history["loss"][-1]
    one_by_one = np.concatenate([trainer.predict(x[i : i + 1]) for i in range(5)])
    # Samples are independent; a product of another size is summed in another order.
    np.testing.assert_allclose(one_by_one, trainer.predict(x)[:5], rtol=1e-4, atol=1e-5)
    assert bits(model) == before


@pytest.mark.parametrize("backend", ["array_api_strict", "torch"])
def test_captured_steps_end_with_the_bits_of_eager_ones(backend: str) -> None:
    pytest.importorskip(backend)
    ends = []
    for captured in (False, True):
        with emulated_graphs():
            model = network().to(backend)
            trainer_of(model, capture=captured).fit(*data(), epochs=2, batch_size=4)
            ends.append(bits(model))
    assert ends[0] == ends[1]
    assert np.frombuffer(ends[0]["1.num_batches_tracked"], "int64") == 12


def test_a_run_killed_within_an_epoch_ends_with_the_bits_of_a_whole_one(tmp_path: Path) -> None:
    def killed(trainer: Any, step: int) -> None:
        if trainer.optimizer.steps == 8:
            raise RuntimeError

    def run(folder: Path, *callbacks: Any) -> dict[str, bytes]:
        trainer = trainer_of(network())
        saved = Checkpoints(folder, every=3)
        trainer.fit(*data(), 3, 4, callbacks=[saved, *callbacks], resume=folder)
        return bits(trainer.model)

    whole = run(tmp_path / "whole")
    with pytest.raises(RuntimeError):
        run(tmp_path / "killed", LambdaCallback(on_step_end=killed))
    assert run(tmp_path / "killed") == whole


# --- what is refused -----------------------------------------------------------------------------

f32 = "float32"
BAD: list[tuple[Callable[[], Any], str]] = [
    (lambda: nn.BatchNorm1d(0), "num_features.*at least 1, got 0"),
    (lambda: nn.BatchNorm1d(2, eps=-1), "eps must be a finite number from 0, got -1"),
    (lambda: nn.BatchNorm1d(2, momentum=1.5), "momentum must be .* from 0 to 1, got 1.5"),
    (
        lambda: nn.BatchNorm1d(2)(np.ones((4, 3), f32)),
        r"BatchNorm1d\(2, eps=1e-05, momentum=0.1, affine=True, track_running_stats=True\) expects "
        r"input \(N, 2\) or \(N, 2, L\), got shape \(4, 3\)",
    ),
    (lambda: nn.BatchNorm1d(2)(np.ones((4, 2, 3, 3), f32)), r"\(N, 2, L\), got .*\(4, 2, 3, 3\)"),
    (lambda: nn.BatchNorm2d(2)(np.ones((4, 2, 3), f32)), r"\(N, 2, H, W\), got shape \(4, 2, 3\)"),
    (
        lambda: nn.BatchNorm1d(2).forward(np.ones((1, 2), f32), training=True),
        r"more than one value a channel in training.*got shape \(1, 2\); give larger batches",
    ),
    (
        lambda: nn.BatchNorm2d(2).forward(np.ones((0, 2, 3, 3), f32), training=True),
        r"more than one value a channel",
    ),
    (lambda: nn.BatchNorm1d(2)(np.ones((4, 2))), "float64 input.*float32.*astype"),
    (lambda: nn.LayerNorm(()), "normalized_shape must name at least one axis, got none"),
    (lambda: nn.LayerNorm((3, 0)), "each size in normalized_shape.*at least 1, got 0"),
    (lambda: nn.LayerNorm(3, eps=-1), "eps must be"),
    (
        lambda: nn.LayerNorm((2, 3))(np.ones((2, 3, 2), f32)),
        r"LayerNorm\(\(2, 3\), eps=1e-05, elementwise_affine=True, bias=True\) expects input "
        r"\(…, 2, 3\), got shape \(2, 3, 2\)",
    ),
    (lambda: nn.LayerNorm((2, 3))(np.ones(3, f32)), r"\(…, 2, 3\), got shape \(3,\)"),
    (lambda: nn.RMSNorm(3, eps=-1), "eps must be"),
    (
        lambda: nn.RMSNorm(3)(np.ones((3, 2), f32)),
        r"RMSNorm\(\(3,\), eps=None, elementwise_affine=True\) expects input \(…, 3\), got shape",
    ),
    (lambda: nn.GroupNorm(0, 2), "num_groups.*at least 1, got 0"),
    (lambda: nn.GroupNorm(2, 0), "num_channels.*at least 1, got 0"),
    (lambda: nn.GroupNorm(2, 3), "multiple of num_groups, got 3 channels for 2 groups"),
    (lambda: nn.GroupNorm(1, 2, eps=-1), "eps must be"),
    (
        lambda: nn.GroupNorm(1, 2)(np.ones((3, 3), f32)),
        r"GroupNorm\(1, 2, eps=1e-05, affine=True\) expects input \(N, 2, …\), got shape \(3, 3\)",
    ),
    (lambda: nn.GroupNorm(1, 2)(np.ones(2, f32)), r"\(N, 2, …\), got shape \(2,\)"),
]


@pytest.mark.parametrize(("call", "sentence"), BAD, ids=[sentence for _, sentence in BAD])
def test_bad_input_gets_one_sentence(call: Any, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence) as error:
        call()
    assert "\n" not in str(error.value)


def test_a_last_batch_of_one_is_refused_in_the_words_of_the_layer() -> None:
    model = nn.Sequential(nn.Linear(2, 2, rng=0), nn.BatchNorm1d(2))
    trainer = xbp.Trainer(model, nn.MSELoss(), optim.SGD(model.parameters(), lr=0.1), rng=0)
    x = np.ones((5, 2), "float32")
    with pytest.raises(InputError, match=r"the last one of an epoch may be smaller"):
        trainer.fit(x, x, epochs=1, batch_size=2)


def test_initial_values_are_pytorchs() -> None:
    torch = pytest.importorskip("torch")
    for name, arguments in (("BatchNorm2d", (3,)), ("LayerNorm", (3,)), ("GroupNorm", (1, 3))):
        theirs, ours = getattr(torch.nn, name)(*arguments), getattr(nn, name)(*arguments)
        for key, value in theirs.state_dict().items():
            assert np.array_equal(ours.state_dict()[key], value.numpy())
