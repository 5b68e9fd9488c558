"""Buffers of a layer: saved, moved, captured; changed by backwards alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import xbp
from xbp import nn, optim
from xbp.errors import InputError
from xbp.testing import check_gradients, check_parity, emulated_graphs
from xbp.training import Checkpoints, EarlyStopping, LambdaCallback, TerminateOnNaN
from xbp.training.door.data import place
from xbp.training.memory import step_too_large


class Centred(nn.Layer):
    """y = s (x - m) in inference with a running mean m, and y = s x in training."""

    def __init__(self, features: int, dtype: str = "float32") -> None:
        self.scale = nn.Parameter(xbp.asarray([1.0] * features, dtype=dtype))
        self.mean = nn.Buffer(xbp.asarray([0.0] * features, dtype=dtype))
        self.count = nn.Buffer(xbp.asarray(0, dtype="int64"))

    def forward(self, x: Any, *, training: bool = False, rng: Any = None) -> Any:
        xp = self.check_input(x)
        s, add_grad = self.scale.lend()
        centred = x if training else x - self.mean.data

        def backward(dy: Any) -> Any:
            self.check_gradient(xp, dy, x.shape)
            add_grad(xp.sum(dy * centred, axis=0))
            if training:
                self.count.data += 1
                self.mean.data += 0.5 * (xp.mean(x, axis=0) - self.mean.data)
            return s * dy

        return s * centred, backward


def batch(n: int = 4) -> Any:
    return np.random.default_rng(n).normal(size=(n, 2)).astype("float32")


def kept(model: nn.Layer) -> dict[str, Any]:
    return {name: xbp.to_numpy(buffer.data).tolist() for name, buffer in model.named_buffers()}


def step(layer: nn.Layer, x: Any, *, whole: bool = True) -> None:
    y, backward = layer.forward(x, training=True)
    (backward if whole else nn.for_parameters(backward))(np.ones_like(y))


def network(dtype: str = "float32") -> nn.Sequential:
    parts = (
        nn.Linear(2, 2, dtype=dtype, rng=0),
        Centred(2, dtype),
        nn.Linear(2, 1, dtype=dtype, rng=1),
    )
    return nn.Sequential(*parts)


def trainer_of(model: nn.Layer, **options: Any) -> xbp.Trainer:
    optimizer = optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    return xbp.Trainer(model, nn.MSELoss(), optimizer, rng=3, **options)


def data(n: int = 12) -> tuple[Any, Any]:
    return batch(n), batch(n)[:, :1]


def test_a_buffer_is_saved_moved_and_converted_but_not_learned() -> None:
    layer = Centred(2)
    assert [name for name, _ in layer.named_parameters()] == ["scale"]
    assert [name for name, _ in layer.named_buffers()] == ["mean", "count"]
    assert list(layer.state_dict()) == ["scale", "mean", "count"]
    layer.astype("float64")
    assert [str(array.dtype) for array in layer.state_dict().values()] == [
        *["float64"] * 2,
        "int64",
    ]
    layer(np.ones((1, 2)))  # an integer beside float64 is no contradiction
    assert [str(dtype) for dtype in layer.dtypes()] == ["float64"]


@pytest.mark.parametrize("backend", ["array_api_strict", "torch"])
def test_a_buffer_goes_where_its_layer_goes(backend: str) -> None:
    pytest.importorskip(backend)
    layer = network().to(backend)
    with xbp.use_backend(backend) as place_:
        backward = layer.forward(xbp.asarray(batch()), training=True)[1]
        backward(xbp.asarray(np.ones((4, 1), "float32")))
        assert {place_.name} == {
            xbp.backend.backend_of(b.data).name for _, b in layer.named_buffers()
        }
    assert kept(layer)["1.count"] == 1 and kept(layer)["1.mean"] != [0, 0]


def test_a_forward_leaves_no_trace_and_each_backward_changes_it() -> None:
    layer, x = Centred(2), batch()
    y, backward = layer.forward(x, training=True)
    assert kept(layer) == {"mean": [0, 0], "count": 0}
    array = layer.mean.data
    backward(np.ones_like(y))
    np.testing.assert_allclose(layer.mean.data, 0.5 * x.mean(axis=0), rtol=1e-6)
    assert layer.mean.data is array, "in place, so that a recorded step finds it"
    step(layer, x, whole=False)
    assert kept(layer)["count"] == 2


def test_what_is_kept_makes_no_backward_stale() -> None:
    layer, x = Centred(2), batch()
    (y, first), (_, second) = (layer.forward(x, training=True) for _ in range(2))
    second(np.ones_like(y))
    first(np.ones_like(y))
    assert kept(layer)["count"] == 2


def test_statistics_without_training() -> None:
    model, twin, x = network(), network(), batch()
    step(model, x)
    gradients = [p.grad for p in model.parameters()]
    before = kept(model)
    nn.update_statistics(model, x)
    assert all(p.grad is g for p, g in zip(model.parameters(), gradients, strict=True))
    step(twin, x)
    step(twin, x)
    assert kept(model) == kept(twin) != before
    weights = {k: v.tolist() for k, v in model.state_dict().items() if k not in before}
    assert weights == {k: v.tolist() for k, v in network().state_dict().items() if k not in before}
    nn.update_statistics(nn.ReLU(), x)  # nothing to do


def test_gradients_survive_a_model_that_refuses_its_input() -> None:
    model = network()
    step(model, batch())
    before = kept(model), [p.grad for p in model.parameters()]
    with pytest.raises(InputError):
        nn.update_statistics(model, np.ones((1, 3), "float32"))
    assert (kept(model), [p.grad for p in model.parameters()]) == before


# --- who must not change it ---


def a_gradient_check(model: nn.Layer) -> None:
    check_gradients(model, batch())


def a_look_for_the_first_nan(model: nn.Layer) -> None:
    x, y = data()
    with np.errstate(all="ignore"):
        x[3] = 1e38
        trainer = trainer_of(model)
        trainer.fit(1e5 * x, y, batch_size=12, callbacks=[TerminateOnNaN()])
    assert "the first thing not finite is" in trainer.state.stop_reason


def a_memory_probe(model: nn.Layer) -> None:
    x, y = data()
    trainer = trainer_of(model)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("xbp.training.memory.on_host", lambda x: False)  # tries smaller batches
        error = step_too_large(trainer, 12, MemoryError(), x, y)
    assert "a batch size of 6 would probably fit" in str(error)


def an_export(model: nn.Layer) -> None:
    pytest.importorskip("ndonnx")
    from xbp.exchange.tracing import traced

    file, _ = traced(model, batch(), None)
    assert {w.name for w in file.graph.initializer} >= {"1.mean"}


def a_summary(model: nn.Layer) -> None:
    assert sum(row.parameters for row in nn.summary(model, (2,))) == 11


def an_evaluation(model: nn.Layer) -> None:
    trainer = trainer_of(model)
    trainer.evaluate(*data())
    trainer.predict(data()[0])


@pytest.mark.parametrize(
    "look",
    [
        *(a_gradient_check, a_look_for_the_first_nan, a_memory_probe, an_export, a_summary),
        an_evaluation,
    ],
)
def test_who_only_looks_changes_nothing(look: Any) -> None:
    model = network()
    step(model, batch(3))
    before = kept(model)
    look(model)
    assert kept(model) == before and before["1.count"] == 1


def test_a_forward_that_leaves_a_trace_is_found() -> None:
    class Counting(Centred):
        def forward(self, x: Any, *, training: bool = False, rng: Any = None) -> Any:
            self.count.data += training
            return super().forward(x, training=training)

    with pytest.raises(AssertionError, match=r"its forward changes count; a forward leaves no"):
        check_gradients(Counting(2), batch())


def test_a_gradient_check_holds_what_a_training_forward_reads_still() -> None:
    class Reading(Centred):
        def forward(self, x: Any, *, training: bool = False, rng: Any = None) -> Any:
            y, backward = super().forward(x, training=training)
            return y - self.mean.data, backward

    check_gradients(Reading(2), batch())


def test_parity_sees_what_a_backward_makes_of_it() -> None:
    pytest.importorskip("array_api_strict")

    class Different(Centred):
        def forward(self, x: Any, *, training: bool = False, rng: Any = None) -> Any:
            y, backward = super().forward(x, training=training)

            def wrong(dy: Any) -> Any:
                if not isinstance(x, np.ndarray):
                    self.mean.data += 1e-3
                    self.count.data += 1
                return backward(dy)

            return y, wrong

    check_parity(lambda: Centred(2), batch())
    wrong = r"mean after the backward is .* from the truth.*count after the backward is not the"
    with pytest.raises(AssertionError, match=wrong):
        check_parity(lambda: Different(2), batch(), dtypes=["float32"])


# --- training ---


def test_the_statistics_of_captured_steps_are_those_of_eager_ones() -> None:
    pytest.importorskip("torch")
    states = []
    for captured in (False, True):
        with emulated_graphs():
            model = network().to("torch")
            trainer_of(model, capture=captured).fit(*data(11), epochs=2, batch_size=3)
            states.append({name: array.tobytes() for name, array in model.state_dict().items()})
    assert states[0] == states[1]


def test_a_run_resumed_in_the_middle_of_an_epoch_has_the_same_statistics(tmp_path: Path) -> None:
    def killed(trainer: Any, step: int) -> None:
        if trainer.optimizer.steps == 6:
            raise RuntimeError

    def run(folder: Path, *callbacks: Any) -> dict[str, bytes]:
        trainer = trainer_of(network())
        saved = Checkpoints(folder, every=1)
        trainer.fit(*data(), 3, 3, callbacks=[saved, *callbacks], resume=folder)
        return {name: array.tobytes() for name, array in trainer.model.state_dict().items()}

    whole = run(tmp_path / "whole")
    with pytest.raises(RuntimeError):
        run(tmp_path / "killed", LambdaCallback(on_step_end=killed))
    resumed = run(tmp_path / "killed")
    assert resumed == whole
    assert np.frombuffer(resumed["1.count"], "int64") == 12


def test_the_best_weights_come_back_with_their_statistics() -> None:
    model = network()
    after: list[Any] = []
    best = EarlyStopping("loss", patience=1, min_delta=1e9)
    look = LambdaCallback(on_epoch_end=lambda t, *_: after.append(kept(t.model)))
    trainer_of(model).fit(*data(), epochs=5, batch_size=3, callbacks=[look, best])
    assert len(after) > 1 and after[0] != after[1]
    assert kept(model) == after[0]


def test_a_trainer_finds_nothing_to_say_of_it(recwarn: pytest.WarningsRecorder) -> None:
    trainer_of(network()).fit(*data(), epochs=1, batch_size=3)
    assert not recwarn.list
    assert str(place(network(), np.ones((1, 2))).dtype) == "float32"


# --- what is refused ---


def test_what_is_kept_cannot_be_learned() -> None:
    layer = Centred(2)
    with pytest.raises(InputError, match=r"Buffer\(shape=\(2,\), dtype=float32\) is kept"):
        layer.mean.trainable = True
    with pytest.raises(InputError, match=r"parameter 0 is a Buffer.*model\.parameters\(\)"):
        optim.SGD([layer.mean], lr=0.1)


def test_a_counter_takes_no_fractions() -> None:
    layer = Centred(2)
    state = layer.state_dict()
    with pytest.raises(InputError, match="'count' is float64 in place of int64"):
        layer.load_state_dict(state | {"count": np.asarray(1.5)})
    layer.load_state_dict(state | {"count": np.asarray(3, np.uint8)})
    assert kept(layer)["count"] == 3
