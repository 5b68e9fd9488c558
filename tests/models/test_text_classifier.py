"""The text classifier: padding is left out exactly, and its parts are PyTorch's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import xbp
from xbp import nn, optim
from xbp.errors import BackendError, InputError
from xbp.models import TextClassifier
from xbp.testing import check_gradients
from xbp.training import load_model, save_weights

FORMS: list[dict[str, Any]] = [
    {}, {"layers": 2}, {"bidirectional": True}, {"layers": 3, "bidirectional": True},
]  # fmt: skip
TEXTS = [[3, 1, 4, 1, 5], [2, 6], [5], [1, 2, 3, 4]]


def model_of(**options: Any) -> TextClassifier:
    sizes: dict[str, Any] = {"width": 5, "hidden": 4, "dtype": "float64", "rng": 0}
    return TextClassifier(7, 3, **sizes | options)


def batch(length: int, place: str = "end") -> Any:
    """`TEXTS` with zeros as padding at an end, or in between."""
    x = np.zeros((len(TEXTS), length), np.int64)
    rng = np.random.default_rng(0)
    for row, text in zip(x, TEXTS, strict=True):
        start = 0 if place == "end" else length - len(text)
        places = np.arange(start, start + len(text))
        if place == "between":
            places = np.sort(rng.permutation(length)[: len(text)])
        row[places] = text
    return x


@pytest.mark.parametrize("place", ["end", "beginning", "between"])
@pytest.mark.parametrize("options", FORMS)
def test_no_output_depends_on_padding(options: dict[str, Any], place: str) -> None:
    """Gradients do not depend on padding; sums of some hundred terms of order 1 in float64."""
    model = model_of(**options)
    weights = np.random.default_rng(1).normal(size=(len(TEXTS), 3))
    alone = np.concatenate([model(np.array([text])) for text in TEXTS])
    gradients = []
    for x in (batch(5), batch(11, place)):
        y, backward = model.forward(x, training=True, rng=0)
        np.testing.assert_allclose(y, alone, rtol=1e-12, atol=1e-12)
        backward(weights)
        gradients.append({name: p.grad for name, p in model.named_parameters()})
        for parameter in model.parameters():
            parameter.zero_grad()
    for name, gradient in gradients[0].items():
        np.testing.assert_allclose(gradients[1][name], gradient, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("options", FORMS)
def test_equals_pytorchs_packed_sequences(options: dict[str, Any]) -> None:
    torch = pytest.importorskip("torch")
    model = model_of(**options)
    state = {name: torch.asarray(value) for name, value in model.state_dict().items()}
    layers, directions = model.lstm.num_layers, len(model.lstm.directions)
    theirs = torch.nn.LSTM(
        *(5, 4, layers), batch_first=True, bidirectional=directions > 1, dtype=torch.float64
    )
    theirs.load_state_dict(
        {k.removeprefix("lstm."): v for k, v in state.items() if k.startswith("lstm.")}
    )
    vectors = state["tokens.weight"][torch.asarray(batch(6))]
    lengths = torch.tensor([len(text) for text in TEXTS])
    packed = torch.nn.utils.rnn.pack_padded_sequence(
        vectors, lengths, batch_first=True, enforce_sorted=False
    )
    _, (h, _) = theirs(packed)
    last = torch.cat(list(h[-directions:]), dim=1)
    expected = (last @ state["head.weight"].T + state["head.bias"]).detach().numpy()
    # sums of some hundred terms of order 1
    np.testing.assert_allclose(model(batch(6)), expected, rtol=1e-10, atol=1e-10)


def test_a_text_without_any_token_has_no_features() -> None:
    model = model_of(bidirectional=True)
    x = np.array([[0, 0, 0], [1, 0, 2]])
    np.testing.assert_array_equal(model(x)[0], model.head.bias.data)
    check_gradients(model, x)


@pytest.mark.parametrize("truncate", [None, 2])
@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
def test_states_stay_over_padding(kind: Any, truncate: int | None) -> None:
    """An initial state, and gradients of the final one, as for the steps without padding."""
    layer = kind(3, 4, 2, bidirectional=True, truncate=truncate, dtype="float64", rng=0)
    rng = np.random.default_rng(0)
    x, dy = rng.normal(size=(2, 7, 3)), rng.normal(size=(2, 7, 8))
    kept = [0, 2, 3, 6] if truncate is None else [0, 1, 2, 3]
    mask = np.ones((2, 7), bool)
    mask[:, kept] = dy[:, mask[0]] = False
    states = [rng.normal(size=(4, 2, 4)) for _ in range(2 * len(kind.states))]
    pairs = states[::2], states[1::2]
    initial, final = (tuple(pair) if kind is nn.LSTM else pair[0] for pair in pairs)
    (y, end), backward = layer.run(x, initial, padding_mask=mask)
    dx, dinitial = backward(dy, final)
    (y_kept, end_kept), backward = layer.run(x[:, kept], initial)
    dx_kept, dinitial_kept = backward(dy[:, kept], final)
    np.testing.assert_allclose(y[:, kept], y_kept, rtol=1e-12)
    np.testing.assert_allclose(end, end_kept, rtol=1e-12)
    np.testing.assert_array_equal(dx[:, mask[0]], 0)
    if truncate is None:  # otherwise the reverse direction has another first chunk
        np.testing.assert_allclose(dx[:, kept], dx_kept, rtol=1e-11, atol=1e-14)
        np.testing.assert_allclose(dinitial, dinitial_kept, rtol=1e-11, atol=1e-14)
    else:
        np.testing.assert_allclose(y[:, 3:, :4], np.repeat(y[:, 3:4, :4], 4, axis=1))


def test_it_learns_who_opens_and_who_closes() -> None:
    """The class is the first token, which the state must keep to the end, across padding."""
    rng = np.random.default_rng(0)
    x = rng.integers(1, 6, (300, 8))
    y = x[:, 0] - 1
    x[np.arange(8) >= rng.integers(1, 9, (300, 1))] = 0
    model = TextClassifier(6, 5, width=8, hidden=16, rng=0)
    trainer = xbp.Trainer(
        model, nn.CrossEntropyLoss(), optim.Adam(model.parameters(), 0.02), ["accuracy"], rng=0
    )
    trainer.fit(x, y, epochs=25, batch_size=30, verbose=False)
    assert trainer.evaluate(x, y)["accuracy"] > 0.95
    assert not model.tokens.weight.data[0].any()


def test_files_name_it(tmp_path: Any) -> None:
    model, path = TextClassifier(7, 3, hidden=5, bidirectional=True, rng=0), tmp_path / "w"
    save_weights(model.state_dict(), path, model=model)
    loaded = load_model(path)
    assert isinstance(loaded, TextClassifier) and repr(loaded) == repr(model)
    np.testing.assert_array_equal(loaded(batch(6)), model(batch(6)))


BAD: list[tuple[Any, str]] = [
    (lambda: model_of(hidden=0), "hidden_size must be"),
    (lambda: model_of()(np.zeros((2, 3))), "integers"),
    (lambda: model_of()(np.zeros(3, np.int64)), r"tokens \(N, T\) of at least one time step"),
    (lambda: model_of()(np.zeros((3, 0), np.int64)), r"at least one time step, got shape \(3, 0\)"),
    (lambda: model_of()(np.full((1, 2), 7)), "tokens from 0 to 6, got 7"),
    (lambda: masked(np.zeros((2, 4), bool)), r"padding_mask of shape \(2, 3\) and dtype bool"),
    (lambda: masked(np.zeros((2, 3))), "padding_mask.*dtype bool.*float64"),
]


def masked(mask: Any) -> Any:
    return nn.GRU(4, 2, dtype="float64", rng=0).run(np.zeros((2, 3, 4)), padding_mask=mask)


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input_is_one_sentence(call: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()


def test_a_mask_of_another_library_is_refused() -> None:
    with xbp.use_backend("array_api_strict") as there:
        mask = there.asarray(np.zeros((2, 3), bool))
    with pytest.raises(BackendError, match="padding_mask"):
        masked(mask)
