"""GPT: its architecture, its initial weights, and its texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import xbp
from xbp import nn, optim
from xbp.errors import DataError, InputError
from xbp.models import GPT
from xbp.models.gpt import NextTokenLoss
from xbp.nn.attention import KeysAndValues
from xbp.testing import assert_no_host_sync, check_gradients, check_parity
from xbp.training import load_model, save_weights

SMALL: dict[str, Any] = {
    "vocabulary": 7, "context": 6, "layers": 2, "heads": 2, "width": 8, "rng": 0,
}  # fmt: skip
TOKENS = np.random.default_rng(0).integers(0, 7, (3, 5))


def test_it_is_its_parts_one_after_the_other() -> None:
    model = GPT(**SMALL)
    x = model.tokens(TOKENS)
    x = x + model.positions.weight.data[:5]
    for block in model.blocks:
        assert block.norm_first and block.self_attn.causal
        x = block(x)
    expected = model.norm(x) @ model.tokens.weight.data.T
    # Sums of 8 products in float32.
    np.testing.assert_allclose(model(TOKENS), expected, rtol=0, atol=1e-6)
    assert model(TOKENS).shape == (3, 5, 7)


def test_gpt_2_small_has_its_124_million_parameters() -> None:
    """The parameters of GPT-2 small (Radford et al. 2019), counted from the shapes of one block."""
    model = GPT(vocabulary=11, context=13, layers=1, heads=12, width=768, rng=0)
    block = sum(parameter.data.size for parameter in model.blocks.parameters())
    assert (50_257 + 1024) * 768 + 12 * block + 2 * 768 == 124_439_808


@pytest.mark.parametrize("options", [{}, {"tie": False}, {"dropout": 0.3}])
def test_gradients_and_backends(options: dict[str, Any]) -> None:
    """A tied table gets the sum of both of its gradients."""
    check_gradients(GPT(**SMALL | options), TOKENS)
    check_parity(lambda: GPT(**SMALL | options), TOKENS)


def test_initial_weights_are_gpt_2s() -> None:
    model = GPT(vocabulary=300, context=50, layers=3, heads=4, width=64, tie=False, rng=0)
    drawn: list[Any] = []
    for name, value in model.state_dict().items():
        if name.endswith("bias"):
            assert not value.any(), name
        elif "norm" in name:
            assert np.all(value == 1), name
        else:
            onto_sum = name.endswith(("out_proj.weight", "linear2.weight"))
            std = 0.02 / np.sqrt(6) if onto_sum else 0.02
            # The standard deviation of n numbers errs by 1/√2n, here 1/90 at most; 5 σ.
            assert abs(value.std() / std - 1) < 5 / np.sqrt(2 * value.size), name
            drawn.append(value.ravel() / std)
    every = np.concatenate(drawn)
    assert every.size > 180_000 and abs(every.std() - 1) < 5 / np.sqrt(2 * every.size)
    assert GPT(**SMALL).state_dict().keys() | {"head.weight"} == model_names(tie=False)


def model_names(**options: Any) -> set[str]:
    return set(GPT(**SMALL | options).state_dict())


def test_no_step_waits_for_the_device() -> None:
    pytest.importorskip("array_api_strict")
    with xbp.use_backend("array_api_strict"):
        model, x = GPT(**SMALL, dropout=0.1), xbp.asarray(TOKENS)
        with assert_no_host_sync():
            y, backward = model.forward(x, training=True, rng=0)
            backward(y)
            model(x)


def test_it_learns_a_rule() -> None:
    """Each token repeats the one two before: after some steps the loss is far below log 7 = 1.9."""
    rng, model, loss = np.random.default_rng(0), GPT(**SMALL), nn.CrossEntropyLoss()
    optimizer = optim.Adam(model.parameters(), 0.01)
    for _ in range(150):
        x = np.tile(rng.integers(0, 7, (16, 2)), 3)
        logits, backward = model.forward(x, training=True)
        value, gradient = loss(logits[:, 1:-1].reshape(-1, 7), x[:, 2:].reshape(-1))
        dy = np.zeros_like(logits)
        dy[:, 1:-1] = gradient.reshape(16, 4, 7)
        nn.for_parameters(backward)(dy)
        optimizer.step()
        optimizer.zero_grad()
    assert value < 0.1
    assert model.generate([3, 5], 4, temperature=0).tolist() == [3, 5, 3, 5, 3, 5]


# --- generate -------------------------------------------------------------------------------------


def test_what_it_writes_depends_on_the_seed_alone() -> None:
    pytest.importorskip("array_api_strict")
    written = GPT(**SMALL).generate(TOKENS, 9, rng=1)
    assert written.shape == (3, 14) and written.dtype == np.int64
    assert np.array_equal(written[:, :5], TOKENS)
    assert np.array_equal(written, GPT(**SMALL).generate(TOKENS, 9, rng=1))
    assert not np.array_equal(written, GPT(**SMALL).generate(TOKENS, 9, rng=2))
    with xbp.use_backend("array_api_strict"):
        assert np.array_equal(written, GPT(**SMALL).generate(xbp.asarray(TOKENS), 9, rng=1))
    assert GPT(**SMALL).generate([1], 0).tolist() == [1]


def test_it_sees_the_last_of_a_long_text() -> None:
    model, long = GPT(**SMALL), np.arange(20) % 7
    short = model.generate(long[-6:], 1, temperature=0)
    assert model.generate(long, 1, temperature=0)[-1] == short[-1]


def written_step_by_step(model: GPT, tokens: Any, length: int, rng: int) -> Any:
    """From all logits of the whole window in each step."""
    found, draws = np.array(tokens), xbp.random.generator(rng)
    for _ in range(length):
        seen = xbp.get_backend().asarray(found[:, -model.context :])
        logits = xbp.to_numpy(model(seen))[:, -1]
        found = np.column_stack([found, xbp.random.categorical(logits, draws)])
    return found


@pytest.mark.parametrize("options", [{}, {"tie": False}, {"layers": 1, "heads": 1}])
@pytest.mark.parametrize("given", [1, 4, 6, 7])
@pytest.mark.parametrize("backend", ["numpy", "array_api_strict", "torch"])
def test_it_writes_what_it_would_without_keeping_keys_and_values(
    backend: str, given: int, options: dict[str, Any]
) -> None:
    """Before and after the window begins to slide."""
    pytest.importorskip(backend)
    tokens = np.random.default_rng(1).integers(0, 7, (3, given))
    with xbp.use_backend(backend):
        model = GPT(**SMALL | options, dtype="float64")
        for parameter in model.parameters():  # far from all tokens being alike
            parameter.assign(20 * xbp.to_numpy(parameter.data))
        found = model.generate(tokens, 9, rng=2)
        np.testing.assert_array_equal(found, written_step_by_step(model, tokens, 9, rng=2))
    assert len(np.unique(found)) > 3


@pytest.mark.parametrize("norm_first", [True, False])
def test_a_block_extends_a_sequence_to_rounding(norm_first: bool) -> None:
    block = nn.TransformerBlock(8, 2, norm_first=norm_first, causal=True, dtype="float64", rng=0)
    x, past = np.random.default_rng(0).normal(size=(2, 6, 8)), KeysAndValues(6)
    parts = [block.extend(part, past) for part in (x[:, :3], x[:, 3:4], x[:, 4:5], x[:, 5:])]
    # Sums of 8 products, twice.
    np.testing.assert_allclose(np.concatenate(parts, axis=1), block(x), rtol=1e-13, atol=1e-13)
    assert past.length == 6


def test_a_step_reads_the_new_token_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    read, ordinary = [], nn.Embedding.forward

    def forward(self: Any, x: Any, **mode: Any) -> Any:
        read.append(x.shape[1])
        return ordinary(self, x, **mode)

    monkeypatch.setattr(nn.Embedding, "forward", forward)
    GPT(**SMALL).generate([1, 2, 3], 6, rng=0)
    assert read == [3, 1, 1, 1, 6, 6]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("options", [{}, {"tie": False}])
def test_tokens_are_drawn_from_the_logits_of_the_model(
    options: dict[str, Any], dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the temperature 1, unless another is asked for."""
    seen, ordinary = [], xbp.random.categorical

    def categorical(logits: Any, rng: Any, *, temperature: float, top_k: Any) -> Any:
        seen.append((logits, temperature))
        return ordinary(logits, rng, temperature=temperature, top_k=top_k)

    monkeypatch.setattr("xbp.models.gpt.categorical", categorical)
    model = GPT(**SMALL | options, dtype=dtype)
    written = model.generate(TOKENS, 4, rng=0)
    for step, (logits, temperature) in enumerate(seen):
        window = written[:, max(0, step - 1) : 5 + step]
        expected = model(window)[:, -1]
        assert temperature == 1 and logits.dtype == dtype and logits.shape == (3, 7)
        # Sums of 8 products, in another order.
        np.testing.assert_allclose(logits, expected, rtol=0, atol=10 * np.finfo(dtype).eps)
    model.generate(TOKENS, 1, temperature=0.5, rng=0)
    assert len(seen) == 5 and seen[-1][1] == 0.5


class Fifth:
    """Of another model: logits after which token 5 follows, and the lengths of its inputs."""

    lengths: list[int]

    def logits(self, x: Any) -> Any:
        self.lengths = [*getattr(self, "lengths", []), x.shape[1]]
        logits = np.zeros((*x.shape, 7))
        logits[..., 5] = 1e3
        return logits


class Called(Fifth, GPT):
    def __call__(self, x: Any) -> Any:
        return self.logits(x)


class Forwarded(Fifth, GPT):
    def forward(self, x: Any, *, training: bool = False, rng: Any = None) -> Any:
        return self.logits(x), None


@pytest.mark.parametrize("kind", [Called, Forwarded])
def test_a_subclass_writes_by_its_own_way(kind: Any) -> None:
    model = kind(**SMALL)
    assert model.generate([1, 2], 6, rng=0).tolist() == [1, 2, *[5] * 6]
    assert model.lengths == [2, 3, 4, 5, 6, 6]


def test_blocks_of_another_kind_read_the_whole_window() -> None:
    model = GPT(**SMALL, dtype="float64")
    other = nn.Residual(nn.Linear(8, 8, dtype="float64", rng=3))
    model.blocks = nn.Sequential(model.blocks[0], other)
    found = model.generate(TOKENS, 9, rng=2)
    np.testing.assert_array_equal(found, written_step_by_step(model, TOKENS, 9, rng=2))


# --- its loss -------------------------------------------------------------------------------------

LOGITS = np.random.default_rng(5).normal(size=(2, 3, 5))
TARGETS = np.array([[0, 4, 2], [2, 1, 3]])


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}, {"ignore_index": 2}])
def test_its_loss_is_cross_entropy_of_rows(options: dict[str, Any]) -> None:
    value, gradient = NextTokenLoss(**options)(LOGITS, TARGETS)
    rows = LOGITS.reshape(6, 5), TARGETS.reshape(6)
    expected, slopes = nn.CrossEntropyLoss(**options)(*rows)
    assert float(value) == pytest.approx(float(expected), rel=1e-14)
    np.testing.assert_allclose(gradient, slopes.reshape(LOGITS.shape), rtol=0, atol=1e-15)
    check_parity(lambda: NextTokenLoss(**options), LOGITS, TARGETS)


@pytest.mark.parametrize(
    ("options", "weight", "expected"),
    [
        ({}, None, None),
        ({}, [0.5, 2.0], 2.5),
        ({"ignore_index": 2}, None, 4.0),
        # Two of three tokens of the first sample count, and two of the second.
        ({"ignore_index": 2}, [0.5, 2.0], 2 * 0.5 + 2 * 2.0),
        ({"weight": [1.0, 2.0, 4.0, 8.0, 16.0]}, None, 1 + 16 + 4 + 4 + 2 + 8),
    ],
)
def test_the_divisor_of_its_mean_counts_what_counts(
    options: dict[str, Any], weight: Any, expected: float | None
) -> None:
    weight = None if weight is None else np.array(weight)
    found = NextTokenLoss(**options).denominator(LOGITS, TARGETS, weight)
    assert found == expected if expected is None else float(found) == expected
    if expected is not None:
        assert found.dtype == LOGITS.dtype


def test_its_loss_waits_for_nothing() -> None:
    pytest.importorskip("array_api_strict")
    with xbp.use_backend("array_api_strict"):
        loss, arrays = NextTokenLoss(ignore_index=2), (xbp.asarray(LOGITS), xbp.asarray(TARGETS))
        with assert_no_host_sync():
            loss(*arrays)
            loss.denominator(*arrays)


def test_its_loss_needs_one_row_a_token() -> None:
    for shape in ((2, 5), (2, 3, 5, 1)):
        with pytest.raises(InputError, match="vocabulary"):
            NextTokenLoss()(np.zeros(shape), np.zeros((2, 3), int))


# --- files ----------------------------------------------------------------------------------------


def test_a_file_makes_it_again(tmp_path: Path) -> None:
    model, path = GPT(**SMALL, tie=False, dropout=0.1), tmp_path / "model.safetensors"
    save_weights(model.state_dict(), path, model=model)
    again = load_model(path)
    assert isinstance(again, GPT) and repr(again) == repr(model)
    assert np.array_equal(again(TOKENS), model(TOKENS))


@pytest.mark.parametrize("name", ["vocabulary", "context", "layers", "width"])
def test_a_file_takes_no_more_memory_than_its_weights(tmp_path: Path, name: str) -> None:
    model, path = GPT(**SMALL), tmp_path / "model.safetensors"
    model.arguments[name] = 10**9
    save_weights(model.state_dict(), path, model=model)
    with pytest.raises(DataError, match="more weights than the file"):
        load_model(path)


def test_it_exports_to_onnx(tmp_path: Path) -> None:
    pytest.importorskip("ndonnx")
    pytest.importorskip("onnxruntime")
    from xbp.exchange import to_onnx

    exported = to_onnx(GPT(**SMALL), tmp_path / "gpt.onnx", (5,))
    assert exported.input_shape == ("N", 5) and exported.output_shape == ("N", 5, 7)
    assert exported.difference is not None and exported.difference < 1e-5 * exported.largest


# --- refusals -------------------------------------------------------------------------------------


def extended(*steps: int, causal: bool = True) -> None:
    layer, past = nn.MultiheadAttention(4, 2, causal=causal, rng=0), KeysAndValues(6)
    for step in steps:
        layer.extend(np.zeros((1, step, 4), np.float32), past)


BAD: list[tuple[Any, str]] = [
    (lambda: GPT(0, 6, 2, 2, 8), "vocabulary must be an integer of at least 1"),
    (lambda: GPT(7, 0, 2, 2, 8), "context must be an integer of at least 1"),
    (lambda: GPT(7, 6, 0, 2, 8), "layers must be an integer of at least 1"),
    (lambda: GPT(7, 6, 2, 3, 8), "num_heads must divide embed_dim"),
    (lambda: GPT(**SMALL)(np.zeros((2, 7), int)), r"1 to 6 time steps, got shape \(2, 7\)"),
    (lambda: GPT(**SMALL)(np.zeros((2, 0), int)), "1 to 6 time steps"),
    (lambda: GPT(**SMALL)(np.zeros(3, int)), r"tokens \(N, T\)"),
    (lambda: GPT(**SMALL)([[1, 2]]), "expected an array, got list"),
    (lambda: GPT(**SMALL)(np.zeros((2, 3))), "needs integers"),
    (lambda: GPT(**SMALL)(np.full((2, 3), 7)), "tokens from 0 to 6, got 7"),
    (lambda: GPT(**SMALL).generate([], 3), "generate needs tokens to begin with"),
    (lambda: GPT(**SMALL).generate([0.5], 3), "generate needs tokens to begin with"),
    (lambda: GPT(**SMALL).generate([1], -1), "length must be an integer of at least 0"),
    (lambda: GPT(**SMALL).generate([1], 1, temperature=-1), "temperature must be"),
    (lambda: GPT(**SMALL).generate([1], 1, top_k=0), "top_k must be"),
    (lambda: GPT(**SMALL).generate([7], 1), "tokens from 0 to 6, got 7"),
    (lambda: extended(1, 6, causal=False), "got a layer that is not causal"),
    (lambda: extended(2, 1, 2), "got 2 steps at once"),
    (lambda: extended(7), "room for 6 time steps of one batch"),
    (lambda: KeysAndValues(0), "longest must be"),
]


@pytest.mark.parametrize(("call", "sentence"), BAD, ids=[sentence for _, sentence in BAD])
def test_bad_input_gets_one_sentence(call: Any, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence) as error:
        call()
    assert "\n" not in str(error.value)
