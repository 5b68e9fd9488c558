"""Attention against PyTorch's, and behaviour that the table of cases does not cover."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import xbp
from xbp import nn, primitives
from xbp.errors import BackendError, InputError
from xbp.testing import assert_no_host_sync, check_gradients

TENTH_DIGIT = 1e-10
"""Sums of some hundred float64 terms of order 1, in another order: 1e-13, with room for exp."""


def close(found: Any, expected: Any) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=TENTH_DIGIT)


@given(data=st.data())
def test_it_is_pytorchs(data: st.DataObject) -> None:
    """Output, all gradients and state dicts; self and cross, causal or not, with padding or not."""
    torch = pytest.importorskip("torch")
    heads, size, n, t, s = (data.draw(st.integers(1, 5)) for _ in range(5))
    bias, causal, crossed, padded = (data.draw(st.booleans()) for _ in range(4))
    rng, width = np.random.default_rng(data.draw(st.integers(0, 99))), heads * size
    theirs = torch.nn.MultiheadAttention(
        width, heads, bias=bias, batch_first=True, dtype=torch.float64
    )
    ours = nn.MultiheadAttention(width, heads, bias=bias, causal=causal, dtype="float64", rng=0)
    for parameter in theirs.parameters():  # biases too, which are 0 at first
        torch.nn.init.normal_(parameter)
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict({k: torch.tensor(v) for k, v in ours.state_dict().items()})

    x = rng.normal(size=(n, t, width))
    memory = rng.normal(size=(n, s, width)) if crossed else x
    padding = rng.random(memory.shape[:2]) < 0.3
    padding[:, 0] = False  # each query sees something, causal or not
    their_x = torch.tensor(x, requires_grad=True)
    their_memory = torch.tensor(memory, requires_grad=True) if crossed else their_x
    later = ~torch.ones(t, memory.shape[1], dtype=bool).tril()
    y, _ = theirs(
        their_x, their_memory, their_memory,
        key_padding_mask=torch.tensor(padding) if padded else None,
        attn_mask=later if causal else None, need_weights=False,
    )  # fmt: skip
    dy = rng.normal(size=x.shape)
    y.backward(torch.tensor(dy))

    mask = padding if padded else None
    found, backward = ours.forward(x, memory if crossed else None, key_padding_mask=mask)
    close(found, y.detach())
    if crossed:
        dx, dmemory = backward(dy)
        close(dmemory, their_memory.grad)
    else:
        dx = backward(dy)
    close(dx, their_x.grad)
    for name, parameter in theirs.named_parameters():
        close(dict(ours.named_parameters())[name].grad, parameter.grad)


def test_the_initial_weights_are_pytorchs() -> None:
    """The ranges: U(±√(6/(out + in))) for the one matrix (3E, E), and U(±1/√E)."""
    layer = nn.MultiheadAttention(48, 4, rng=0)
    state = layer.state_dict()
    assert 0.99 < np.abs(state["in_proj_weight"]).max() / np.sqrt(6 / (4 * 48)) <= 1
    assert 0.99 < np.abs(state["out_proj.weight"]).max() * np.sqrt(48) <= 1
    assert not state["in_proj_bias"].any() and not state["out_proj.bias"].any()


# --- masks ----------------------------------------------------------------------------------------


def filled(*shape: int) -> Any:
    return np.random.default_rng(len(shape)).normal(size=shape)


def test_a_query_without_keys_gives_nothing_and_gets_no_gradient() -> None:
    layer = nn.MultiheadAttention(4, 2, dtype="float64", rng=0)
    x, memory = filled(2, 3, 4), filled(2, 5, 4)
    padding = np.array([[False] * 5, [True] * 5])
    y, backward = layer.forward(x, memory, key_padding_mask=padding)
    dx, dmemory = backward(np.ones_like(y))
    close(y[1], 0.0)  # out_proj's bias is 0 at first
    assert np.isfinite(dx).all() and dx[0].all()
    assert not dx[1].any() and not dmemory[1].any()
    assert all(np.isfinite(parameter.grad).all() for parameter in layer.parameters())


def test_gradients_where_a_sample_is_nothing_but_padding() -> None:
    q, k, v = filled(2, 1, 3, 4), filled(2, 1, 5, 4), filled(2, 1, 5, 2)
    ignored = np.array([[True] * 5, [False, True, False, False, True]])

    class Attention(nn.Layer):
        def forward(self, x: Any, *, training: bool = False, rng: Any = None) -> Any:
            y, gradients = primitives.attention(*x, ignored, causal=True)
            return y, lambda dy: gradients(dy)

    check_gradients(Attention(), (q, k, v))


def test_what_is_ignored_changes_nothing() -> None:
    layer, x = nn.MultiheadAttention(4, 2, dtype="float64", rng=0), filled(2, 5, 4)
    padding = np.zeros((2, 5), bool)
    padding[:, 3:] = True
    y, backward = layer.forward(x, key_padding_mask=padding)
    close(y[:, :3], layer(x[:, :3]))
    dy = filled(2, 5, 4)
    dy[:, 3:] = 0.0
    assert not backward(dy)[:, 3:].any()


@pytest.mark.parametrize("ignored", [None, 1])
def test_causal_positions_do_not_see_what_follows(ignored: int | None) -> None:
    layer, x = nn.MultiheadAttention(4, 2, causal=True, dtype="float64", rng=0), filled(1, 6, 4)
    padding = None if ignored is None else np.arange(6)[None] == ignored
    other = x.copy()
    other[:, 4:] += 1.0
    y, changed = (layer(data, key_padding_mask=padding) for data in (x, other))
    assert np.array_equal(y[:, :4], changed[:, :4])
    assert not np.array_equal(y[:, 4:], changed[:, 4:])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_large_scores_neither_overflow_nor_lose_the_sum(dtype: str) -> None:
    q = np.full((1, 1, 2, 1), 1e4, dtype)
    k = np.asarray([[[[1.0], [-1.0], [1.0]]]], dtype)
    v = np.asarray([[[[1.0], [7.0], [2.0]]]], dtype)
    y, gradients = primitives.attention(q, k, v)
    assert y.tolist() == [[[[1.5], [1.5]]]]  # two equal scores, and one that gives e^-20000
    assert all(np.isfinite(gradient).all() for gradient in gradients(np.ones_like(y)))


def test_nothing_but_minus_infinity_counts_as_no_key() -> None:
    """PyTorch's softmax gives 0 there too."""
    q, k, v = np.array([[[[np.inf]]]]), np.array([[[[-1.0]]]]), np.array([[[[3.0]]]])
    assert primitives.attention(q, k, v)[0].tolist() == [[[[0.0]]]]


def test_dropped_weights_come_from_the_stream_and_only_in_training() -> None:
    layer, x = nn.MultiheadAttention(4, 2, 0.5, dtype="float64", rng=0), filled(2, 5, 4)
    again = [layer.forward(x, training=True, rng=seed)[0] for seed in (1, 1, 2)]
    assert np.array_equal(again[0], again[1]) and not np.array_equal(again[0], again[2])
    assert np.array_equal(layer(x), layer.forward(x, rng=1)[0])
    check_gradients(layer, x)


def test_a_gradient_of_the_queries_can_be_left_out() -> None:
    q, k, v = filled(1, 2, 3, 4), filled(1, 2, 5, 4), filled(1, 2, 5, 4)
    y, gradients = primitives.attention(q, k, v)
    dq, dk, dv = gradients(y, False)
    assert dq is None
    assert np.array_equal(dk, gradients(y)[1]) and np.array_equal(dv, gradients(y)[2])


def test_masks_are_made_on_the_device() -> None:
    pytest.importorskip("array_api_strict")
    with xbp.use_backend("array_api_strict"):
        layer = nn.MultiheadAttention(4, 2, 0.5, causal=True, dtype="float64", rng=0)
        x, memory = xbp.asarray(filled(2, 3, 4)), xbp.asarray(filled(2, 5, 4))
        padding = xbp.asarray(np.arange(10).reshape(2, 5) % 3 == 1)
        with assert_no_host_sync():
            y, backward = layer.forward(x, memory, key_padding_mask=padding, training=True, rng=0)
            backward(y)


# --- refusals -------------------------------------------------------------------------------------


def called(*inputs: Any, **options: Any) -> Any:
    return nn.MultiheadAttention(4, 2, dtype="float64", rng=0).forward(*inputs, **options)


X = np.zeros((2, 3, 4))
BAD = [
    (lambda: nn.MultiheadAttention(6, 4), "num_heads must divide embed_dim, got 4 heads for 6"),
    (lambda: nn.MultiheadAttention(6, 0), "num_heads must be an integer of at least 1"),
    (lambda: nn.MultiheadAttention(4, 2, dropout=1.5), "p must be"),
    (lambda: called(np.zeros((2, 3, 5))), r"expects input \(N, T, 4\).*\(2, 3, 5\)"),
    (lambda: called(np.zeros((3, 4))), r"expects input \(N, T, 4\)"),
    (lambda: called(np.zeros((2, 0, 4))), "at least one time step"),
    (lambda: called(X, np.zeros((2, 3, 5))), r"expects a memory \(N, T, 4\)"),
    (lambda: called(X, np.zeros((3, 3, 4))), "memory of 3 samples for an input of 2"),
    (lambda: called(X, X.astype("float32")), "float32 input, but its parameters are float64"),
    (lambda: called(X, key_padding_mask=np.zeros((2, 4), bool)), r"shape \(2, 3\) and dtype bool"),
    (lambda: called(X, key_padding_mask=np.zeros((2, 3))), "dtype bool.*float64"),
    (lambda: called(X, key_padding_mask=[[True] * 3] * 2), "expected an array, got list"),
]


@pytest.mark.parametrize(("call", "sentence"), BAD, ids=[sentence for _, sentence in BAD])
def test_bad_input_gets_one_sentence(call: Any, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence) as error:
        call()
    assert "\n" not in str(error.value)


def test_a_memory_or_a_mask_elsewhere_is_refused() -> None:
    pytest.importorskip("array_api_strict")
    there = xbp.backend.find_backend("array_api_strict")
    with pytest.raises(BackendError, match="its parameters are on"):
        called(X, there.asarray(X))
    with pytest.raises(BackendError, match="key_padding_mask"):
        called(X, key_padding_mask=there.asarray(np.zeros((2, 3), bool)))
