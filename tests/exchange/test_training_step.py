"""Training steps as ONNX files: in onnxruntime they do what xbp's Trainer does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nightly import NIGHTLY

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
ndonnx = pytest.importorskip("ndonnx")

import xbp  # noqa: E402
from xbp import nn, optim  # noqa: E402
from xbp.errors import DataError, InputError  # noqa: E402
from xbp.exchange import export_training_step, onnx_graph, step, to_onnx  # noqa: E402
from xbp.exchange.survey import items  # noqa: E402

ITEMS = {item.case: item for item in items()}
SHORT = (  # a case of each kind of graph; all others in nightly runs, which take minutes
    "Linear(4, 3) of (2, 3, 4)",
    "Conv2d(2, 2, 2, stride=3) of (2, 2, 9, 8)",
    "Conv2d(2, 3, (3, 2), stride=(1, 2), padding=(2, 1), dilation=(2, 3)) of (3, 2, 9, 8)",
    "Conv2d(3, 6, (2, 3), bias=False, dilation=2, groups=3) of (2, 3, 6, 7)",
    "MaxPool2d((3, 4), (2, 1), (1, 2)) of (2, 2, 6, 5)",
    "MaxPool2d((3, 2), (2, 1), (1, 1)) of (2, 2, 6, 5) with zeros",
    "AvgPool2d((3, 2), (1, 2), (0, 1)) of (2, 2, 5, 6)",
    "GRU(3, 4) of (2, 5, 3)",
)


def normal(*shape: int, seed: int = 7) -> Any:
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


class Shifted(nn.Layer):
    """Adds a parameter of the input's shape, whose gradient is the layer's ∂L/∂x."""

    def __init__(self, shape: tuple[int, ...], layer: nn.Layer) -> None:
        self.shift = nn.Parameter(normal(*shape[1:]) / 8)
        self.layer = layer

    def forward(self, x: Any, *, training: bool = False, rng: Any = None) -> Any:
        xp = self.check_input(x)
        y, backward = self.layer.forward(x + self.shift.data, training=training, rng=rng)

        def back(dy: Any) -> Any:
            dx = backward(dy)
            self.shift.add_grad(xp.sum(dx, axis=0))
            return dx

        return y, back


def pieces(dropout: float = 0) -> tuple[nn.Layer, Any, Any, Any]:
    """A model, a loss, and a batch."""
    x, y = normal(6, 5), np.random.default_rng(3).integers(0, 3, 6)
    return xbp.models.MLP(5, 4, 3, dropout=dropout, rng=0), nn.CrossEntropyLoss(), x, y


def trained(path: Path, start: Any, batches: Any, rates: Any = None) -> tuple[list[Any], Any]:
    """The losses of a file's steps, and what it started from, as it is after them."""
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    state, losses = dict(start), []
    for k, (x, y) in enumerate(batches):
        if rates is not None:
            state["rate"] = np.asarray(rates[k])
        results = dict(
            zip(names, session.run(None, {"input": x, "target": y, **state}), strict=True)
        )
        losses.append(results["loss"])
        state |= {n.removesuffix(".new"): results[n] for n in names if n.endswith(".new")}
        state["step"] = np.asarray(state["step"] + 1)
    return losses, state


def by_xbp(model: nn.Layer, loss: Any, optimizer: Any, batches: Any, rng: int = 0) -> list[Any]:
    trainer, losses = xbp.Trainer(model, loss, optimizer, rng=rng), []
    for x, y in batches:
        trainer.step(x, y)
        losses.append(trainer.current_loss)
    return losses


def alike(state: Any, model: nn.Layer) -> None:
    """Parameters and buffers have the values of the model's, which has made the same steps."""
    found = {name: state[name] for name in model.state_dict() if name in state}
    assert found
    for name, value in found.items():
        expected = model.state_dict()[name]
        # Float32 keeps 7 digits; the sums of three steps in another order keep 5.
        scale = np.max(np.abs(expected), initial=1e-3)
        np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-5 * scale, err_msg=name)


# --- the same steps ------------------------------------------------------------------------------


def test_twenty_steps_of_lenet5_have_the_losses_of_xbp(tmp_path: Path) -> None:
    model, path = xbp.models.LeNet5(rng=0), tmp_path / "step.onnx"
    (images, labels), _ = xbp.datasets.load_mnist()
    x, y = xbp.datasets.standardize_images(images[:160]), labels[:160].astype("int64")
    batches = [(x[k : k + 8], y[k : k + 8]) for k in range(0, 160, 8)]
    optimizer = optim.Adam(model.parameters(), lr=0.002)
    exported = export_training_step(model, nn.CrossEntropyLoss(), optimizer, path, *batches[0])
    assert exported.difference is not None and exported.difference <= 1e-5
    kinds = {"Conv": 4, "ConvTranspose": 1, "MaxPool": 2, "ScatterElements": 2}
    assert {kind: exported.nodes[kind] for kind in kinds} == kinds  # a node each
    assert not {"If", "ScatterND", "Range"} & set(exported.nodes)
    losses, _ = trained(path, exported.start, batches)
    expected = by_xbp(model, nn.CrossEntropyLoss(), optimizer, batches)
    np.testing.assert_allclose(losses, expected, rtol=0, atol=1e-4)
    assert losses[-1] < losses[0]
    file = onnx.load(path)
    onnx.checker.check_model(file, full_check=True)
    assert [value.name for value in file.graph.input] == ["input", "target", *exported.start]
    assert not file.graph.initializer


@pytest.mark.parametrize("case", list(ITEMS) if NIGHTLY else SHORT)
def test_each_layer_learns_as_in_xbp(tmp_path: Path, case: str) -> None:
    item, path = ITEMS[case], tmp_path / "step.onnx"
    model, x = item.make().astype("float32"), item.inputs[0]
    if x.dtype.kind == "f":
        x = x.astype("float32")
        model = Shifted(x.shape, model)
    y = normal(*model(x).shape)
    optimizer, loss = optim.SGD(model.parameters(), lr=0.01, momentum=0.9), nn.MSELoss()
    exported = export_training_step(model, loss, optimizer, path, x, y)
    batches = [(x, y)] * 3
    losses, state = trained(path, exported.start, batches)
    expected = by_xbp(model, loss, optimizer, batches)
    np.testing.assert_allclose(losses, expected, rtol=1e-5, atol=1e-6)
    alike(state, model)


@pytest.mark.parametrize(
    "make",
    [
        lambda p: optim.SGD(p, 0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
        lambda p: optim.Adagrad(p, 0.1),
        lambda p: optim.Adadelta(p, 1.0),
        lambda p: optim.RMSprop(p, 0.01),
        lambda p: optim.AdamW(p, 0.01, amsgrad=True),
        lambda p: optim.Adamax(p, 0.01),
        lambda p: optim.Lion(p, 0.01),
        lambda p: optim.LAMB(p, 0.01),
    ],
    ids=["SGD", "Adagrad", "Adadelta", "RMSprop", "AdamW", "Adamax", "Lion", "LAMB"],
)
def test_each_rule_updates_as_in_xbp(tmp_path: Path, make: Any) -> None:
    x, y, loss = normal(6, 5), normal(6, 2, seed=1), nn.MSELoss()
    model, path = nn.Linear(5, 2, rng=0), tmp_path / "step.onnx"
    optimizer = make(model.parameters())
    exported = export_training_step(model, loss, optimizer, path, x, y)
    batches = [(x, y), (y @ normal(2, 5), x @ normal(5, 2)), (x, y)]
    losses, state = trained(path, exported.start, batches)
    np.testing.assert_allclose(losses, by_xbp(model, loss, optimizer, batches), rtol=1e-5)
    alike(state, model)
    for index, name in enumerate(("weight", "bias")):
        for kind, array in optimizer.state[index].items():
            np.testing.assert_allclose(state[f"{name}.{kind}"], array, rtol=1e-4, atol=1e-7)


def test_rates_masks_and_state_go_on_where_training_stood(tmp_path: Path) -> None:
    """A schedule is the caller's; masks depend on the seed and the step."""
    model, loss, x, y = pieces(dropout=0.25)
    optimizer = optim.Adam(model.parameters(), lr=lambda k: 0.1 / (1 + k))
    by_xbp(model, loss, optimizer, [(x, y)] * 2, rng=5)
    path = tmp_path / "step.onnx"
    exported = export_training_step(model, loss, optimizer, path, x, y, rng=5)
    assert (exported.start["step"], exported.start["rate"]) == (2, optimizer.lr_at(2))
    rates = [optimizer.lr_at(k) for k in range(2, 5)]
    losses, state = trained(path, exported.start, [(x, y)] * 3, rates)
    expected = by_xbp(model, loss, optimizer, [(x, y)] * 3, rng=5)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    alike(state, model)


def test_groups_have_their_own_rates(tmp_path: Path) -> None:
    model, x, y = nn.Linear(5, 2, rng=0), normal(6, 5), normal(6, 2)
    groups = [{"params": [model.weight], "lr": 0.1}, {"params": [model.bias], "weight_decay": 0.1}]
    optimizer, path = optim.SGD(groups, lr=0.01), tmp_path / "step.onnx"
    exported = export_training_step(model, nn.MSELoss(), optimizer, path, x, y)
    assert exported.start["rate"].tolist() == [0.1, 0.01]
    _, state = trained(path, exported.start, [(x, y)] * 2)
    by_xbp(model, nn.MSELoss(), optimizer, [(x, y)] * 2)
    alike(state, model)


def test_what_does_not_change_is_a_constant_and_statistics_are_state(tmp_path: Path) -> None:
    class Weighted(nn.MSELoss):
        def __init__(self, w: Any) -> None:
            super().__init__()
            self.w = w

        def __call__(self, prediction: Any, target: Any, weight: Any = None) -> Any:
            value, gradient = super().__call__(self.w * prediction, target)
            return value, self.w * gradient

    model = nn.Sequential(nn.Linear(5, 3, rng=0), nn.BatchNorm1d(3), nn.Linear(3, 2, rng=1))
    model.unused = nn.Parameter(normal(2))
    for frozen in (model[0].weight, model[2].weight, model[2].bias):
        frozen.trainable = False
    loss, x, y = Weighted(np.asarray([1.0, 3.0], "float32")), normal(6, 5), normal(6, 2)
    optimizer, path = optim.Adam(model.parameters(), lr=0.1), tmp_path / "step.onnx"
    exported = export_training_step(model, loss, optimizer, path, x, y)
    stored = {w.name for w in onnx.load(path).graph.initializer}
    assert stored == {"0.weight", "2.weight", "2.bias"}
    assert not {"unused", "unused.m", "0.weight.m", "2.bias"} & set(exported.start)
    assert {"1.running_mean", "1.running_var", "1.num_batches_tracked"} <= set(exported.start)
    losses, state = trained(path, exported.start, [(x, y)] * 2)
    np.testing.assert_allclose(losses, by_xbp(model, loss, optimizer, [(x, y)] * 2), rtol=1e-5)
    alike(state, model)
    assert state["1.num_batches_tracked"] == 2


def test_float64_stays_float64(tmp_path: Path) -> None:
    model, path = nn.Linear(5, 2, dtype="float64", rng=0), tmp_path / "step.onnx"
    x, y = normal(6, 5).astype("float64"), normal(6, 2).astype("float64")
    optimizer = optim.Adam(model.parameters())
    exported = export_training_step(model, nn.MSELoss(), optimizer, path, x, y)
    assert exported.difference is not None and exported.difference < 1e-14
    assert exported.start["weight.v"].dtype == "float64"


def test_model_loss_and_optimizer_stay_as_they_are(tmp_path: Path) -> None:
    model, loss, x, y = pieces()
    optimizer = optim.Adam(model.parameters())
    by_xbp(model, loss, optimizer, [(x, y)])
    p = model.parameters()[0]
    p.add_grad(p.data)
    before, data, gradient = optimizer.state_dict(), p.data, p.grad
    weights = model.state_dict()
    export_training_step(model, loss, optimizer, tmp_path / "step.onnx", x, y)
    assert p.data is data and p.grad is gradient and optimizer.steps == 1
    for name, value in optimizer.state_dict().items():
        np.testing.assert_array_equal(value, before[name])
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(value, weights[name])


def test_a_model_for_inference_may_take_its_weights_as_inputs(tmp_path: Path) -> None:
    model, loss, x, y = pieces()
    exported = export_training_step(
        model, loss, optim.SGD(model.parameters(), 0.1), tmp_path / "step.onnx", x, y
    )
    to_onnx(model, tmp_path / "model.onnx", (5,), weights_as_inputs=True)
    path = str(tmp_path / "model.onnx")
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    assert names == ["input", *model.state_dict()]
    new = {name: 2 * exported.start[name] for name in names[1:]}
    (got,) = session.run(None, {"input": x, **new})
    model.load_state_dict(new)
    np.testing.assert_allclose(got, model(x), rtol=1e-5, atol=1e-5)


# --- refusals ------------------------------------------------------------------------------------


class Reading(nn.Layer):
    """A backward that reads a value."""

    def forward(self, x: Any, *, training: bool = False, rng: Any = None) -> Any:
        def backward(dy: Any) -> Any:
            return dy if float(self.check_input(dy).sum(dy)) > -1e9 else -dy

        return x, backward


class ThroughAView(nn.Layer):
    """A backward that changes an array through a view of it, which ndonnx lacks."""

    def forward(self, x: Any, *, training: bool = False, rng: Any = None) -> Any:
        xp = self.check_input(x)

        def backward(dy: Any) -> Any:
            dx = dy * 1.0
            part = xp.reshape(dx, (-1,))
            part *= 3.0
            return dx

        return x, backward


def reading(prediction: Any, target: Any) -> Any:
    return (prediction * float(prediction[0, 0])).sum(), prediction


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": lambda p: optim.NAdam(p)}, "NAdam cannot be exported .* coefficients must"),
        ({"optimizer": lambda p: optim.RAdam(p)}, "RAdam cannot be exported .* coefficients must"),
        (
            {"optimizer": lambda p: optim.SGD(p, 0.1, momentum=0.9, dampening=0.5)},
            "SGD cannot be exported .* coefficients must be arithmetic",
        ),
        ({"model": Reading()}, r"Reading\(\) at '1' cannot be exported to ONNX .* read no value"),
        ({"loss": reading}, r"reading.* cannot be exported to ONNX"),
        ({"x": np.float32(1)}, "x must be a batch"),
        ({"y": normal(3, 2)}, "targets|shape"),
        ({"rng": -1}, "rng must be an integer of at least 0"),
        (
            {"model": ThroughAView()},
            "after 3 steps of this Sequential the [mv] differs by .* nothing",
        ),
    ],
)
def test_what_cannot_be_exported_is_refused(tmp_path: Path, changes: Any, message: str) -> None:
    model = nn.Sequential(nn.Linear(5, 2, rng=0), changes.get("model", nn.Tanh()))
    optimizer = changes.get("optimizer", optim.Adam)(model.parameters())
    given = {"x": normal(6, 5), "y": normal(6, 2)} | {
        name: value for name, value in changes.items() if name in ("x", "y", "rng")
    }
    loss = changes.get("loss", nn.MSELoss())
    with pytest.raises(InputError, match=message) as caught:
        export_training_step(model, loss, optimizer, tmp_path / "step.onnx", **given)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_missing_is_refused(tmp_path: Path) -> None:
    model, loss, x, y = pieces()
    optimizer, path = optim.SGD(model.parameters(), 0.1), tmp_path / "no" / "step.onnx"
    with pytest.raises(DataError, match="cannot write"):
        export_training_step(model, loss, optimizer, path, x, y)


def test_without_onnxruntime_nothing_is_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step, "session_of", lambda content: None)
    model, loss, x, y = pieces()
    optimizer = optim.SGD(model.parameters(), 0.1)
    exported = export_training_step(model, loss, optimizer, tmp_path / "step.onnx", x, y)
    assert exported.difference is None and (tmp_path / "step.onnx").exists()


def test_two_outputs_may_be_one_array() -> None:
    """One takes the place of the array's own name, the other stays a copy."""
    make = onnx.helper.make_node
    nodes = [make("Relu", ["x"], ["a"]), *(make("Identity", ["a"], [name]) for name in "yz")]
    found = onnx_graph.with_outputs_named(nodes, {"y", "z"})
    assert [(n.op_type, *n.input, *n.output) for n in found] == [
        ("Relu", "x", "y"),
        ("Identity", "y", "z"),
    ]
