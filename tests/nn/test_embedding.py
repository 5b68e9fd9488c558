"""Tokens: an Embedding's output and gradient, invalid tokens, and when they are checked."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import xbp
from xbp import nn, optim, primitives
from xbp.errors import BackendError, InputError
from xbp.testing import assert_no_host_sync, check_gradients, check_parity

INTEGERS = ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]


def table(count: int = 7, width: int = 3, **options: Any) -> nn.Embedding:
    return nn.Embedding(count, width, **{"dtype": "float64", "rng": 0} | options)


@given(data=st.data())
def test_it_is_pytorchs(data: st.DataObject) -> None:
    torch = pytest.importorskip("torch")
    count, width = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 5))
    padding = data.draw(st.none() | st.integers(-count, count - 1))
    shape = data.draw(st.lists(st.integers(0, 5), max_size=3))
    tokens = np.random.default_rng(data.draw(st.integers(0, 99))).integers(0, count, shape)
    theirs = torch.nn.Embedding(count, width, padding, dtype=torch.float64)
    ours = table(count, width, padding_idx=padding)
    assert padding is None or not ours.weight.data[padding].any()
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict({k: torch.tensor(v) for k, v in ours.state_dict().items()})
    expected = theirs(torch.tensor(tokens))
    y, backward = ours.forward(tokens)
    assert np.array_equal(y, expected.detach())
    dy = np.random.default_rng(0).normal(size=y.shape)
    expected.backward(torch.tensor(dy))
    assert backward(dy) is None
    # Sums of at most 125 numbers of order 1, in another order.
    np.testing.assert_allclose(ours.weight.grad, theirs.weight.grad, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", INTEGERS)
def test_any_integers_are_tokens(dtype: str) -> None:
    """Also in a table with more rows than the dtype can count."""
    layer, tokens = table(300, padding_idx=6), np.array([[0, 6], [3, 3]])
    y, backward = layer.forward(tokens.astype(dtype))
    assert np.array_equal(y, layer.weight.data[tokens])
    backward(np.ones_like(y))
    assert layer.weight.grad[:7, 0].tolist() == [1, 0, 0, 2, 0, 0, 0]


@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize("backend", ["array_api_strict", "torch"])
def test_any_integers_are_tokens_on_every_backend(dtype: str, backend: str) -> None:
    pytest.importorskip(backend)
    with xbp.use_backend(backend):
        model = nn.Sequential(table(), nn.Flatten())
        trainer = xbp.Trainer(model, nn.MSELoss(), optim.SGD(model.parameters(), 0.1), rng=0)
        x = np.array([[0, 6], [3, 3]], dtype)
        trainer.fit(x, np.zeros((2, 6)), epochs=1)
        assert trainer.predict(x).shape == (2, 6)
        with pytest.raises(InputError, match="tokens from 0 to 6, got 9"):
            trainer.predict(x + x.dtype.type(3))


@pytest.mark.parametrize("shape", [(), (5,), (2, 3), (2, 1, 3)])
def test_gradients_and_backends(shape: tuple[int, ...]) -> None:
    tokens = np.random.default_rng(0).integers(0, 4, shape)
    check_gradients(table(4), tokens)
    check_parity(lambda: table(4, padding_idx=1), tokens)


def test_padding_gets_no_gradient_but_takes_its_vector() -> None:
    layer = table(3, 2, padding_idx=-1)
    assert layer.padding_idx == 2 and not layer.weight.data[2].any() and layer.weight.data[:2].all()
    layer.weight.data[2] = 5.0
    y, backward = layer.forward(np.array([2, 1]))
    assert y[0].tolist() == [5, 5]
    backward(np.ones((2, 2)))
    assert layer.weight.grad.tolist() == [[0, 0], [1, 1], [0, 0]]


# --- a token that is none -------------------------------------------------------------------------

WRONG = [7, -1, 2**24 + 1, 2**32]
"""Invalid tokens, among them one that float32 would round, and one that is 0 in 32 bits."""
SENTENCE = rf"Embedding\(7, 3\) needs tokens from 0 to 6, got ({'|'.join(map(str, WRONG))})$"
wrong = pytest.mark.parametrize("token", WRONG)


@wrong
def test_on_the_host_it_is_refused_in_every_call(token: int) -> None:
    for training in (False, True):
        with pytest.raises(InputError, match=SENTENCE):
            table().forward(np.array([[0, token]]), training=training)


@wrong
def test_on_a_device_it_is_no_other_token(token: int) -> None:
    pytest.importorskip("array_api_strict")
    with xbp.use_backend("array_api_strict"):
        layer = table()
        with assert_no_host_sync():
            y, backward = layer.forward(xbp.asarray([0, token, 6]))
            backward(xbp.asarray(np.ones((3, 3))))
    y, gradient = xbp.to_numpy(y), xbp.to_numpy(layer.weight.grad)
    assert np.isnan(y[1]).all() and np.isfinite(y[[0, 2]]).all()
    assert gradient[:, 0].tolist() == [1, 0, 0, 0, 0, 0, 1]


def test_no_index_is_left_to_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """NumPy wraps a negative index around, others refuse it or read beyond the array."""
    take = np.take

    def checked(array: Any, indices: Any, axis: int = 0) -> Any:
        assert indices.min() >= 0 and indices.max() < array.shape[axis]
        return take(array, indices, axis=axis)

    monkeypatch.setattr(np, "take", checked)
    y, backward = primitives.embedding(np.array([-1, 2, 1, 3]), np.ones((3, 2)))
    assert np.isnan(y).any(axis=1).tolist() == [True, False, False, True]
    assert backward(np.ones((4, 2)))[1][:, 0].tolist() == [0, 1, 1]
    assert primitives.scatter_add(np.ones((2, 1)), np.array([1, 1]), 2).tolist() == [[0], [2]]


@wrong
@pytest.mark.parametrize("backend", ["numpy", "array_api_strict"])
def test_it_is_refused_where_data_come_in(backend: str, token: int) -> None:
    """At any place of any sample; values on a device are read once."""
    pytest.importorskip("array_api_strict")
    with xbp.use_backend(backend):
        model = nn.Sequential(table(), nn.Flatten(), nn.Linear(6, 2, dtype="float64", rng=0))
        trainer = xbp.Trainer(model, nn.MSELoss(), optim.SGD(model.parameters(), 0.1), rng=0)
        x, y = np.random.default_rng(0).integers(0, 7, (9, 2)), np.zeros((9, 2))
        trainer.fit(x, y, epochs=1, batch_size=4)
        before = model.state_dict()
        x[7, 1] = token
        for enter in (
            lambda: trainer.fit(x, y, epochs=1, batch_size=4),
            lambda: trainer.fit(x[:4], y[:4], epochs=1, validation_data=(x, y)),
            lambda: trainer.evaluate(x, y),
            lambda: trainer.predict(x),
        ):
            with pytest.raises(InputError, match=SENTENCE):
                enter()
        after = model.state_dict()
        assert all(np.array_equal(before[name], after[name]) for name in before)
        tokens = xbp.asarray(x[:1])
        with assert_no_host_sync():
            model(tokens)  # no longer read


def test_tables_of_different_sizes_are_each_asked_of_their_own_tokens() -> None:
    class Two(nn.Layer):
        def __init__(self) -> None:
            self.small, self.large = table(3), table(100)

        def forward(self, x: Any, *, training: bool = False, rng: Any = None) -> Any:
            a, back_a = self.small.forward(x[:, 0])
            b, back_b = self.large.forward(x[:, 1])
            return a + b, lambda dy: (back_a(dy), back_b(dy))[0]

    pytest.importorskip("array_api_strict")
    with xbp.use_backend("array_api_strict"):
        model = Two()
        trainer = xbp.Trainer(model, nn.MSELoss(), optim.SGD(model.parameters(), 0.1), rng=0)
        x, y = np.array([[0, 99], [2, 5]]), np.zeros((2, 3))
        trainer.evaluate(x, y)
        with pytest.raises(InputError, match="tokens from 0 to 2, got 49"):
            trainer.evaluate(x[:, ::-1].copy() % 50, y)


def test_tokens_and_gradients_elsewhere_are_refused() -> None:
    pytest.importorskip("array_api_strict")
    there = xbp.backend.find_backend("array_api_strict")
    here = table()
    with pytest.raises(BackendError, match=r"Embedding.*its parameters are on numpy"):
        here(there.asarray(np.array([1])))
    y, backward = here.forward(np.array([1]))
    with pytest.raises(BackendError, match=r"Embedding.*gradient on array_api_strict"):
        backward(there.asarray(y))
    y, backward = table().to("array_api_strict").forward(there.asarray(np.array([1])))
    with pytest.raises(BackendError, match=r"Embedding.*gradient on numpy"):
        backward(np.ones((1, 3)))
    with pytest.raises(
        InputError, match=r"\(2, 3\) as the gradient of an output of shape \(1, 3\)"
    ):
        here.forward(np.array([1]))[1](np.ones((2, 3)))


BAD = [
    (lambda: nn.Embedding(0, 3), "num_embeddings must be an integer of at least 1"),
    (lambda: nn.Embedding(3, 0), "embedding_dim must be an integer of at least 1"),
    (lambda: nn.Embedding(3, 2, 3), "padding_idx must be one of 3 tokens, got 3"),
    (lambda: nn.Embedding(3, 2, -4), "padding_idx must be an integer of at least -3"),
    (lambda: table()(np.ones(3)), "needs integers, such as tokens, got float64"),
    (lambda: table()(np.ones(3, bool)), "needs integers, such as tokens, got bool"),
    (lambda: table()([1, 2]), "expected an array, got list"),
    (lambda: nn.LearnedPositions(3, 2)(np.zeros((1, 4, 2), "f")), "at most 3 time steps"),
    (lambda: nn.LearnedPositions(3, 2)(np.zeros((3, 2), "f")), r"\(N, T, 2\)"),
    (lambda: nn.LearnedPositions(3, 2)(np.zeros((1, 3, 3), "f")), r"\(N, T, 2\).*\(1, 3, 3\)"),
    (lambda: nn.GLU()(np.zeros((2, 3))), r"even number of entries to halve, got shape \(2, 3\)"),
    (lambda: nn.GLU(2)(np.zeros((2, 4))), "even number"),
]


@pytest.mark.parametrize(("call", "sentence"), BAD, ids=[sentence for _, sentence in BAD])
def test_bad_input_gets_one_sentence(call: Any, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence) as error:
        call()
    assert "\n" not in str(error.value)


def test_sinusoidal_positions_are_kept_and_not_learned() -> None:
    layer = nn.SinusoidalPositions(5, 4, dtype="float64")
    x = np.zeros((1, 3, 4))
    y, backward = layer.forward(x)
    assert backward(y) is y and layer.weight.grad is None and layer.parameters() == []
    assert layer.state_dict().keys() == {"weight"}


def test_glu_is_pytorchs() -> None:
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(0).normal(size=(3, 4, 6))
    for dim in (-1, 1, 2, -2):
        theirs = torch.tensor(x, requires_grad=True)
        expected = torch.nn.GLU(dim)(theirs)
        y, backward = nn.GLU(dim).forward(x)
        dy = np.random.default_rng(1).normal(size=y.shape)
        expected.backward(torch.tensor(dy))
        np.testing.assert_allclose(y, expected.detach(), rtol=0, atol=1e-14)
        np.testing.assert_allclose(backward(dy), theirs.grad, rtol=0, atol=1e-14)


# --- the sum of rows ------------------------------------------------------------------------------


@given(
    index=st.lists(st.integers(-2, 6), max_size=40),
    length=st.integers(1, 6),
    seed=st.integers(0, 9),
)
def test_rows_of_an_index_are_added(index: list[int], length: int, seed: int) -> None:
    values = np.random.default_rng(seed).integers(-8, 9, (len(index), 3)) / 4  # sums are exact
    expected = np.zeros((length, 3))
    for row, k in zip(values, index, strict=True):
        if 0 <= k < length:
            expected[k] += row
    found = primitives.scatter_add(values, np.asarray(index, np.int64), length)
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("count", [0, 3])
def test_a_sum_of_rows_does_not_wait_for_the_device(count: int) -> None:
    pytest.importorskip("array_api_strict")
    with xbp.use_backend("array_api_strict"), assert_no_host_sync():
        values, index = xbp.asarray(np.ones((count, 2))), xbp.asarray(np.zeros(count, np.int64))
        found = primitives.scatter_add(values, index, 2)
    assert xbp.to_numpy(found).tolist() == [[count, count], [0, 0]]


def test_a_sum_of_rows_is_as_exact_as_a_tree() -> None:
    """1 + n ε/2 + … one after the other would stay 1; a tree of 2¹² terms errs by 12 roundings."""
    n = 2**12
    values = np.full((n, 1), np.float32(0.1))
    (found,) = primitives.scatter_add(values, np.zeros(n, np.int64), 1)[0]
    exact = float(np.float32(0.1)) * n
    assert abs(found - exact) <= 12 * np.finfo(np.float32).eps / 2 * exact


def test_nan_stays_in_its_own_sum() -> None:
    values = np.array([[1.0], [np.nan], [np.inf], [2.0]])
    found = primitives.scatter_add(values, np.array([0, 1, 2, 3]), 4)
    np.testing.assert_array_equal(found, values)
