"""The Transformer block: PyTorch's encoder layer, and invalid arguments."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xbp import nn
from xbp.errors import InputError
from xbp.testing import check_gradients


@given(data=st.data())
def test_it_is_pytorchs_encoder_layer(data: st.DataObject) -> None:
    torch = pytest.importorskip("torch")
    heads, size, n, t, hidden = (data.draw(st.integers(1, 4)) for _ in range(5))
    norm_first, causal, padded, bias = (data.draw(st.booleans()) for _ in range(4))
    name = data.draw(st.sampled_from(["gelu", "relu"]))
    rng, width = np.random.default_rng(data.draw(st.integers(0, 99))), heads * size + 1
    width *= heads  # at least two features, as the variance of one is 0
    theirs = torch.nn.TransformerEncoderLayer(
        width, heads, hidden, 0.0, name, norm_first=norm_first, batch_first=True, bias=bias,
        dtype=torch.float64,
    )  # fmt: skip
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter)
    activation = {"gelu": nn.GELU, "relu": nn.ReLU}[name]
    ours = nn.TransformerBlock(
        width, heads, hidden, activation=activation, norm_first=norm_first, causal=causal,
        bias=bias, dtype="float64", rng=0,
    )  # fmt: skip
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict({k: torch.tensor(v) for k, v in ours.state_dict().items()})

    x = rng.normal(size=(n, t, width))
    padding = rng.random((n, t)) < 0.3
    padding[:, 0] = False
    their_x = torch.tensor(x, requires_grad=True)
    later = ~torch.ones(t, t, dtype=bool).tril()
    expected = theirs(
        their_x,
        src_mask=later if causal else None,
        src_key_padding_mask=torch.tensor(padding) if padded else None,
    )
    dy = rng.normal(size=x.shape)
    expected.backward(torch.tensor(dy))
    y, backward = ours.forward(x, key_padding_mask=padding if padded else None)
    # Relative to the largest entry: normal weights enlarge numbers, norms divide by small ones.
    for found, wanted in [
        (y, expected.detach()),
        (backward(dy), their_x.grad),
        *((dict(ours.named_parameters())[k].grad, p.grad) for k, p in theirs.named_parameters()),
    ]:
        scale = max(1.0, float(torch.max(torch.abs(wanted))))
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-10 * scale)


@pytest.mark.parametrize("activation", [nn.GLU, nn.SwiGLU])
def test_a_gate_halves_what_is_twice_as_wide(activation: type[nn.Layer]) -> None:
    block = nn.TransformerBlock(4, 2, 6, activation=activation, rng=0)
    assert block.linear1.weight.shape == (12, 4) and block.linear2.weight.shape == (4, 6)
    check_gradients(block, np.random.default_rng(0).normal(size=(2, 3, 4)))


def test_without_biases_there_are_none() -> None:
    state = nn.TransformerBlock(4, 2, bias=False, rng=0).state_dict()
    assert not [name for name in state if "bias" in name]


BAD: list[tuple[Any, str]] = [
    (lambda: nn.TransformerBlock(6, 4), "num_heads must divide"),
    (lambda: nn.TransformerBlock(4, 2, 0), "dim_feedforward must be an integer of at least 1"),
    (lambda: nn.TransformerBlock(4, 2, dropout=-1), "p must be"),
    (lambda: nn.TransformerBlock(4, 2, activation=nn.ReLU()), "an activation must be a class"),
    (lambda: nn.TransformerBlock(4, 2, activation=abs), "an activation must be a class"),
    (lambda: nn.TransformerBlock(4, 2)(np.zeros((2, 3, 5), "f")), r"\(2, 3, 5\)"),
]


@pytest.mark.parametrize(("call", "sentence"), BAD, ids=[sentence for _, sentence in BAD])
def test_bad_input_gets_one_sentence(call: Any, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence) as error:
        call()
    assert "\n" not in str(error.value)
