"""Recurrent layers against PyTorch; states, truncation and errors."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from twin import namespace as twin_namespace
from twin import twin

import xbp
from xbp import nn
from xbp.backend import find_backend
from xbp.testing.helpers import replaced

F64 = NDArray[np.float64]

CELLS = ["RNN", "RNN of ReLU", "LSTM", "GRU"]
FORMS = list(product((1, 2, 3), (False, True), (True, False)))
"""num_layers, bidirectional, bias."""


def make(cell: str, *sizes: int, **options: Any) -> Any:
    kind, _, relu = cell.partition(" of ")
    options |= {"nonlinearity": "relu"} if relu else {}
    return getattr(nn, kind)(*sizes, **options, dtype="float64", rng=0)


def normal(seed: int, *shape: int) -> F64:
    return np.random.default_rng(seed).normal(size=shape)


def states(cell: str, seed: int, *shape: int) -> Any:
    """h for RNN and GRU, (h, c) for LSTM."""
    h, c = normal(seed, 2, *shape)
    return (h, c) if cell == "LSTM" else h


def flat(state: Any) -> list[Any]:
    return list(state) if isinstance(state, tuple) else [state]


def gradients(layer: nn.Layer) -> dict[str, F64]:
    return {name: xbp.to_numpy(p.grad) for name, p in layer.named_parameters()}


def assert_close(ours: Any, theirs: Any) -> None:
    # Values are of order 1 to 100, sums of at most some 1000 roundings.
    np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-10)


# --- against PyTorch -----------------------------------------------------------------------------


def their(cell: str, layer: Any, bias: bool) -> Any:
    """PyTorch's layer with xbp's weights, loaded unchanged by its strict load_state_dict."""
    torch = pytest.importorskip("torch")
    kind, _, relu = cell.partition(" of ")
    theirs = getattr(torch.nn, kind)(
        layer.input_size,
        layer.hidden_size,
        layer.num_layers,
        bias=bias,
        bidirectional=len(layer.directions) == 2,
        batch_first=True,
        dtype=torch.float64,
        **({"nonlinearity": "relu"} if relu else {}),
    )
    theirs.load_state_dict({k: torch.asarray(v) for k, v in layer.state_dict().items()})
    return theirs


@pytest.mark.parametrize(("num_layers", "bidirectional", "bias"), FORMS)
@pytest.mark.parametrize("cell", CELLS)
def test_equals_pytorch(cell: str, num_layers: int, bidirectional: bool, bias: bool) -> None:
    torch = pytest.importorskip("torch")
    layer = make(cell, 3, 5, num_layers, bidirectional=bidirectional, bias=bias)
    theirs = their(cell, layer, bias)
    N, T, scans = 4, 7, num_layers * (1 + bidirectional)
    x, dy = normal(1, N, T, 3), normal(2, N, T, 5 * (1 + bidirectional))
    state, dstate = (states(cell, seed, scans, N, 5) for seed in (3, 4))

    (y, final), backward = layer.run(x, state)
    dx, dstate0 = backward(dy, dstate)

    leaves = [torch.asarray(array).requires_grad_() for array in (x, *flat(state))]
    their_y, their_final = theirs(leaves[0], tuple(leaves[1:]) if cell == "LSTM" else leaves[1])
    torch.autograd.backward(
        (their_y, *flat(their_final)), [torch.asarray(d) for d in (dy, *flat(dstate))]
    )

    pairs = zip([y, *flat(final)], [their_y, *flat(their_final)], strict=True)
    for ours, other in pairs:
        assert_close(ours, other.detach().numpy())
    for ours, leaf in zip([dx, *flat(dstate0)], leaves, strict=True):
        assert_close(ours, leaf.grad.numpy())
    parameters = dict(theirs.named_parameters())
    assert list(gradients(layer)) == list(parameters)
    for name, gradient in gradients(layer).items():
        assert_close(gradient, parameters[name].grad.numpy())


def test_dropout_acts_between_layers_in_training_only() -> None:
    """With p = 1 the second layer's input is 0, and the first layer gets no gradient."""
    layer = make("GRU", 3, 5, 2, dropout=1.0)
    x = normal(1, 4, 7, 3)
    y, backward = layer.forward(x, training=True, rng=0)
    assert np.array_equal(y, layer.forward(0 * x + 9, training=True, rng=1)[0])
    assert np.array_equal(backward(np.ones_like(y)), 0 * x)
    assert np.array_equal(layer(x), make("GRU", 3, 5, 2)(x))
    one = make("GRU", 3, 5, dropout=1.0)
    assert np.array_equal(one.forward(x, training=True, rng=0)[0], one(x))


def test_a_pair_of_states_may_be_a_list() -> None:
    layer, x, state = make("LSTM", 3, 5), normal(1, 4, 7, 3), states("LSTM", 3, 1, 4, 5)
    assert np.array_equal(layer.run(x, list(state))[0][0], layer.run(x, state)[0][0])


def test_dropout_between_layers_is_drawn_from_the_seed_anew_for_each_layer() -> None:
    """Three layers of a cell that returns its input show the product of two masks."""

    class Pass(nn.Recurrent):
        gates = 1

        def step(self, xp: Any, p: Any, q: Any, *states: Any) -> Any:
            return (p,), lambda dh: (dh, 0 * dh, (0 * dh,))

    layer = Pass(5, 5, 3, bias=False, dropout=0.5, dtype="float64", rng=0)
    layer.load_state_dict({name: np.eye(5) for name in layer.state_dict()})
    ones = np.ones((4, 7, 5))
    y, backward = layer.forward(ones, training=True, rng=3)
    stream = xbp.random.RandomStream(3)
    masks = [nn.Dropout(0.5).forward(ones, training=True, rng=stream)[0] for _ in range(2)]
    product = np.moveaxis(masks[0].reshape(7, 4, 5) * masks[1].reshape(7, 4, 5), 0, 1)
    assert np.array_equal(y, product)
    assert np.array_equal(backward(ones), product)


# --- states and truncation -----------------------------------------------------------------------


@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("cell", CELLS)
def test_chunks_with_all_gradients_are_the_whole(cell: str, num_layers: int) -> None:
    whole, parts = make(cell, 3, 5, num_layers), make(cell, 3, 5, num_layers)
    x, dy = normal(1, 4, 7, 3), normal(2, 4, 7, 5)
    state, dstate = (states(cell, seed, num_layers, 4, 5) for seed in (3, 4))
    (y, final), backward = whole.run(x, state)
    dx, dstate0 = backward(dy, dstate)
    (y1, middle), first = parts.run(x[:, :3], state)
    (y2, last), second = parts.run(x[:, 3:], middle)
    dx2, dmiddle = second(dy[:, 3:], dstate)
    dx1, dinitial = first(dy[:, :3], dmiddle)
    assert_close(np.concatenate([y1, y2], axis=1), y)
    assert_close(np.concatenate([dx1, dx2], axis=1), dx)
    for ours, other in zip(
        [*flat(last), *flat(dinitial)], [*flat(final), *flat(dstate0)], strict=True
    ):
        assert_close(ours, other)
    for name, gradient in gradients(parts).items():
        assert_close(gradient, gradients(whole)[name])


@pytest.mark.parametrize("k", [1, 2, 3, 7, 9])
@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("cell", CELLS)
def test_truncated_equals_explicit_chunks(cell: str, num_layers: int, k: int) -> None:
    """Chunks of k steps: the state continues, its gradient does not."""
    layer, plain = make(cell, 3, 5, num_layers, truncate=k), make(cell, 3, 5, num_layers)
    x, dy = normal(1, 4, 7, 3), normal(2, 4, 7, 5)
    state, dstate = (states(cell, seed, num_layers, 4, 5) for seed in (3, 4))
    (y, final), backward = layer.run(x, state)
    dx, dstate0 = backward(dy, dstate)

    outputs, carried, dinitial = [], state, None
    for start in range(0, 7, k):
        chunk = slice(start, start + k)
        (part, carried), part_backward = plain.run(x[:, chunk], carried)
        outputs.append(part)
        dpart, given = part_backward(dy[:, chunk], dstate if start + k >= 7 else None)
        assert_close(dx[:, chunk], dpart)
        dinitial = given if dinitial is None else dinitial
    assert_close(y, np.concatenate(outputs, axis=1))
    for ours, other in zip(
        [*flat(final), *flat(dstate0)], [*flat(carried), *flat(dinitial)], strict=True
    ):
        assert_close(ours, other)
    for name, gradient in gradients(layer).items():
        assert_close(gradient, gradients(plain)[name])


@pytest.mark.parametrize("cell", CELLS)
def test_truncated_equals_pytorch_with_detached_states(cell: str) -> None:
    torch = pytest.importorskip("torch")
    layer = make(cell, 3, 5, 2, truncate=3)
    theirs = their(cell, layer, True)
    x, dy = normal(1, 4, 8, 3), normal(2, 4, 8, 5)
    y, backward = layer.forward(x)
    dx = backward(dy)
    leaf, carried = torch.asarray(x).requires_grad_(), None
    for start in range(0, 8, 3):
        part, carried = theirs(leaf[:, start : start + 3], carried)
        carried = tuple(s.detach() for s in carried) if cell == "LSTM" else carried.detach()
        part.backward(torch.asarray(dy[:, start : start + 3]))
        assert_close(y[:, start : start + 3], part.detach().numpy())
    assert_close(dx, leaf.grad.numpy())
    for name, parameter in theirs.named_parameters():
        assert_close(gradients(layer)[name], parameter.grad.numpy())


@pytest.mark.parametrize("cell", CELLS)
def test_no_gradient_crosses_a_border_in_either_direction(cell: str) -> None:
    """∂y(times of a chunk)/∂x is 0 outside the chunk, and unchanged within it."""
    layer = make(cell, 3, 5, 2, bidirectional=True, truncate=3)
    x, dy = normal(1, 4, 8, 3), np.zeros((4, 8, 10))
    dy[:, 3:6] = normal(2, 4, 3, 10)
    (y, _), backward = layer.run(x)
    dx, _ = backward(dy)
    assert np.array_equal(y, make(cell, 3, 5, 2, bidirectional=True)(x))
    assert not dx[:, :3].any() and not dx[:, 6:].any()
    assert (np.abs(dx[:, 3:6]).sum(axis=(0, 2)) > 0).all()


@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("cell", CELLS)
def test_truncated_against_time_equals_explicit_chunks(cell: str, k: int) -> None:
    """The reverse direction has the same chunks, the last one first."""
    layer = make(cell, 3, 5, bidirectional=True, truncate=k)
    plain = make(cell, 3, 5)
    reverse = {n: v for n, v in layer.state_dict().items() if n.endswith("_reverse")}
    plain.load_state_dict({n.removesuffix("_reverse"): v for n, v in reverse.items()})
    x, dy = normal(1, 4, 7, 3), normal(2, 4, 7, 10)
    dy[:, :, :5] = 0  # so that the forward direction does not contribute to dx
    dx = layer.forward(x)[1](dy)
    carried = None
    for start in range((7 - 1) // k * k, -1, -k):
        chunk = slice(start, start + k)
        (_, carried), backward = plain.run(np.flip(x[:, chunk], axis=1), carried)
        dpart, _ = backward(np.flip(dy[:, chunk, 5:], axis=1))
        assert_close(dx[:, chunk], np.flip(dpart, axis=1))
    for name, gradient in gradients(plain).items():
        assert_close(gradients(layer)[f"{name}_reverse"], gradient)


# --- a few arrays at a time ---


@pytest.mark.parametrize("T", [1, 2, 8, 9, 64, 65, 70])
@pytest.mark.parametrize("cell", CELLS)
def test_no_more_than_eight_arrays_are_joined_at_once(cell: str, T: int) -> None:
    """concat of more arrays uploads a table of pointers on CuPy, which cannot be recorded."""
    joined: list[int] = []

    def counting(name: str) -> Any:
        function = getattr(twin_namespace, name)

        def count(arrays: Any, **options: Any) -> Any:
            joined.append(len(arrays))
            return function(arrays, **options)

        return count

    def run(backend: xbp.Backend) -> list[F64]:
        layer = make(cell, 2, 3, 5, bidirectional=True, truncate=4).to(backend)
        x = backend.asarray(normal(1, 2, T, 2))
        (y, state), backward = layer.run(x)
        dx, dstate = backward(y, state)
        return [xbp.to_numpy(a) for a in (y, dx, *flat(state), *flat(dstate))] + [
            *gradients(layer).values()
        ]

    expected = run(find_backend("numpy"))
    with twin(), replaced(twin_namespace, stack=counting("stack"), concat=counting("concat")):
        for ours, theirs in zip(run(find_backend("twin")), expected, strict=True):
            assert_close(ours, theirs)
    assert max(joined) <= 8


# --- the rest ------------------------------------------------------------------------------------


def test_initial_weights_are_uniform_within_one_over_root_hidden() -> None:
    weights = np.concatenate([v.ravel() for v in nn.LSTM(30, 100, rng=0).state_dict().values()])
    assert np.abs(weights).max() <= 0.1
    # Variance 0.1²/3; for n = 53,000 the estimate's relative σ is √(0.8/n) = 0.4 %; 5 σ.
    assert weights.var() == pytest.approx(0.01 / 3, rel=0.02)


def test_shows_what_is_not_the_default() -> None:
    assert repr(nn.GRU(3, 5)) == "GRU(3, 5)"
    layer = nn.RNN(3, 5, 2, nonlinearity="relu", bidirectional=True, bias=False, truncate=4)
    assert repr(layer) == (
        "RNN(3, 5, num_layers=2, bias=False, bidirectional=True, truncate=4, nonlinearity='relu')"
    )


def test_states_of_another_library_are_refused() -> None:
    pytest.importorskip("array_api_strict")
    layer, x = make("RNN", 3, 5), np.zeros((2, 4, 3))
    with xbp.use_backend("array_api_strict"):
        state = xbp.asarray(np.zeros((1, 2, 5)))
    with pytest.raises(xbp.errors.BackendError, match=r"RNN\(3, 5\).*numpy.*array_api_strict"):
        layer.run(x, state)


X, Y, H0 = np.zeros((2, 4, 3)), np.zeros((2, 4, 5)), np.zeros((1, 2, 5))
BAD = [
    (lambda: make("RNN", 3, 5)(np.zeros((2, 4, 7))), r"\(N, T, 3\), got shape \(2, 4, 7\)"),
    (lambda: make("RNN", 3, 5)(np.zeros((4, 3))), r"\(N, T, 3\), got shape \(4, 3\)"),
    (lambda: make("GRU", 3, 5)(np.zeros((2, 0, 3))), r"length 0.*at least one time step"),
    (lambda: make("GRU", 3, 5)(X.astype("float32")), "float32 input.*float64"),
    (lambda: make("GRU", 3, 5).run(X, H0[0]), r"initial state .*\(1, 2, 5\).*got \(2, 5\)"),
    (lambda: make("GRU", 3, 5).run(X, H0[:, :1]), r"\(1, 2, 5\).*got \(1, 1, 5\)"),
    (lambda: make("GRU", 3, 5).run(X, (H0, H0)), r"h of shape \(1, 2, 5\).* and \(1, 2, 5\)"),
    (lambda: make("GRU", 3, 5).run(X, 0.0), r"h of shape \(1, 2, 5\).*got float"),
    (lambda: make("GRU", 3, 5).run(X, H0.astype("float32")), "float64 input.*float32 initial"),
    (lambda: make("GRU", 3, 5).run(X)[1](Y, H0[:, :1]), r"gradient of the final.*\(1, 1, 5\)"),
    (lambda: make("GRU", 3, 5).run(X)[1](X), r"\(2, 4, 3\) as the gradient of .*\(2, 4, 5\)"),
    (lambda: make("LSTM", 3, 5).run(X, H0), r"h and c of shape \(1, 2, 5\).*got \(1, 2, 5\)"),
    (lambda: make("LSTM", 3, 5).run(X, (H0, H0[0])), r"\(1, 2, 5\).*\(2, 5\)"),
    (lambda: nn.RNN(3, 5, nonlinearity="sin"), "'tanh', 'relu', got 'sin'"),
    (lambda: nn.RNN(3, 0), "hidden_size.*at least 1.*0"),
    (lambda: nn.LSTM(3, 5, "tanh"), "num_layers.*'tanh'"),  # type: ignore[arg-type]
    (lambda: nn.LSTM(3, 5, truncate=0), "truncate.*at least 1.*0"),
    (lambda: nn.LSTM(3, 5, dropout=1.5), "1.5"),
    (lambda: nn.LastTimeStep()(np.zeros((2, 0, 3))), r"at least one time step.*\(2, 0, 3\)"),
    (lambda: nn.LastTimeStep()(np.zeros(2)), r"\(N, T, …\).*\(2,\)"),
]


@pytest.mark.parametrize(("call", "sentence"), BAD, ids=[sentence for _, sentence in BAD])
def test_bad_input_gets_one_sentence(call: Any, sentence: str) -> None:
    with pytest.raises(xbp.errors.InputError, match=sentence) as error:
        call()
    assert "\n" not in str(error.value)


def test_last_is_the_earlier_name_of_last_time_step() -> None:
    assert nn.Last is nn.LastTimeStep
