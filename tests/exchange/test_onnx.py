"""ONNX files: each layer's file gives the layer's results, or the layer is refused by name."""

from __future__ import annotations

import importlib.util
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
ndonnx = pytest.importorskip("ndonnx")

import xbp  # noqa: E402
from xbp import accelerators, nn  # noqa: E402
from xbp.errors import BackendError, DataError, InputError  # noqa: E402
from xbp.exchange import export, to_onnx  # noqa: E402
from xbp.exchange.survey import items, row  # noqa: E402
from xbp.exchange.tracing import traced  # noqa: E402
from xbp.models import lenet1998  # noqa: E402
from xbp.testing import cases  # noqa: E402

ROOT = Path(__file__).parents[2]
ITEMS = list(items())


def normal(*shape: int) -> Any:
    return np.random.default_rng(7).normal(size=shape).astype("float32")


def run(path: Path, x: Any) -> Any:
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {"input": x})[0]


def close(got: Any, expected: Any) -> None:
    # Float32 keeps 7 digits; sums of some hundred products in another order keep 5.
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5 * np.max(np.abs(expected)))


# --- every layer ---------------------------------------------------------------------------------


@pytest.mark.parametrize("item", ITEMS, ids=lambda item: item.case)
def test_the_file_computes_what_the_layer_does(item: Any) -> None:
    found = row(item)
    assert found.reason == ""
    assert found.equal, found.difference
    assert "If" not in found.nodes


def test_every_layer_and_model_is_among_them() -> None:
    lines = [line for line in (*cases.LAYERS, *cases.MODELS) if not line.not_in_onnx]
    assert {item.name for item in ITEMS} == {line.name for line in lines}


def test_the_table_in_the_documents_is_up_to_date() -> None:
    """docs/onnx.md is the output of `python -m xbp.exchange.survey`."""
    lines = (ROOT / "docs" / "onnx.md").read_text(encoding="utf-8").splitlines()
    table = [line.split(" | ") for line in lines if line.startswith("| `")]
    assert [cells[0] for cells in table] == [f"| `{item.case}`" for item in ITEMS]
    assert {cells[2] for cells in table} == {"equal"}


# --- what stands in a file -----------------------------------------------------------------------


def test_lenet5_is_a_dozen_nodes_with_the_names_of_its_state_dict(tmp_path: Path) -> None:
    model, path = xbp.models.LeNet5(rng=0), tmp_path / "lenet5.onnx"
    exported = to_onnx(model, path, (1, 28, 28))
    assert exported.input_shape == ("N", 1, 28, 28)
    assert exported.output_shape == ("N", 10)
    assert (exported.dtype, exported.opset) == ("float32", 21)
    assert exported.nodes == {
        **{"Conv": 2, "Relu": 4, "MaxPool": 2, "Constant": 1, "Reshape": 1},
        **{"Transpose": 3, "MatMul": 3, "Add": 3},
    }
    assert exported.difference is not None and exported.difference <= 1e-5 * exported.largest
    file = onnx.load(path)
    onnx.checker.check_model(file, full_check=True)
    assert file.ir_version <= 10  # of onnxruntime 1.18 and later
    assert file.producer_name == "xbp"
    assert [value.name for value in file.graph.input] == ["input"]
    stored = {w.name: onnx.numpy_helper.to_array(w) for w in file.graph.initializer}
    assert list(stored) == list(model.state_dict())
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(stored[name], array)
    assert [len(node.output) for node in file.graph.node if node.op_type == "MaxPool"] == [1, 1]


def test_nothing_is_computed_twice(tmp_path: Path) -> None:
    """Each time step shares transposed weights and constants."""
    to_onnx(nn.GRU(3, 4, rng=0), tmp_path / "model.onnx", (5, 3))
    nodes = onnx.load(tmp_path / "model.onnx").graph.node
    kinds = Counter((node.op_type, *node.input, *map(str, node.attribute)) for node in nodes)
    assert max(kinds.values()) == 1
    names = [name for node in nodes for name in node.output]
    assert len(set(names)) == len(names)
    assert sum(list(node.input) == ["weight_hh_l0"] for node in nodes) == 1


def test_onnxruntime_makes_a_linear_layer_one_node(tmp_path: Path) -> None:
    """onnxruntime folds constants, and makes the bias a part of the product."""
    to_onnx(xbp.models.MLP(5, 7, 2, rng=0), tmp_path / "model.onnx", (5,))
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    ort.InferenceSession(str(tmp_path / "model.onnx"), options, providers=["CPUExecutionProvider"])
    nodes = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert nodes == ["Gemm", "Relu", "Gemm"]


def test_layer_norm_is_one_node_and_group_norm_is_what_it_consists_of(tmp_path: Path) -> None:
    for layer in (nn.LayerNorm((2, 4)), nn.LayerNorm(4, bias=False)):
        assert to_onnx(layer, tmp_path / "model.onnx", (3, 2, 4)).nodes == {"LayerNormalization": 1}
    nodes = to_onnx(nn.GroupNorm(1, 2), tmp_path / "model.onnx", (2, 4)).nodes
    assert "LayerNormalization" not in nodes and nodes["Sqrt"] == 1


def test_a_file_takes_batches_of_any_size(tmp_path: Path) -> None:
    model = nn.Sequential(
        nn.GRU(3, 4, rng=0), nn.LastTimeStep(), nn.Linear(4, 2, rng=1), nn.Softmax()
    )
    to_onnx(model, tmp_path / "model.onnx", (5, 3))
    for n in (1, 2, 33):
        x = normal(n, 5, 3)
        close(run(tmp_path / "model.onnx", x), model(x))


def test_a_file_may_be_for_one_size_of_batch(tmp_path: Path) -> None:
    model, path = nn.Linear(3, 2, rng=0), tmp_path / "model.onnx"
    exported = to_onnx(model, path, (3,), batch_size=4)
    assert (exported.input_shape, exported.output_shape) == ((4, 3), (4, 2))
    close(run(path, normal(4, 3)), model(normal(4, 3)))
    with pytest.raises(Exception, match="invalid dimensions"):
        run(path, normal(5, 3))


def test_the_references_are_exported_where_accelerators_are_switched_off(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 2, rng=0), nn.ReLU(), nn.MaxPool2d(2))
    with accelerators.disabled():
        exported = to_onnx(model, tmp_path / "model.onnx", (1, 5, 5), batch_size=2)
        with pytest.raises(InputError, match=r"must know the size of the batch: give batch_size"):
            to_onnx(model[:1], tmp_path / "other.onnx", (1, 3, 3))
    assert not {"Conv", "Relu", "MaxPool"} & set(exported.nodes)
    assert exported.difference is not None and exported.difference <= 1e-5 * exported.largest


def test_float64_stays_float64_though_onnxruntime_has_no_such_convolution(tmp_path: Path) -> None:
    model = nn.Sequential(
        *(nn.Conv2d(2, 3, 3, dtype="float64", rng=0), nn.AvgPool2d(2), nn.ReLU(), nn.Flatten()),
        nn.Linear(12, 2, dtype="float64", rng=1),
    )
    exported = to_onnx(model, tmp_path / "model.onnx", (2, 6, 6), batch_size=2)
    assert exported.dtype == "float64"
    assert exported.difference is not None and exported.difference < 1e-14  # 1e-16 × the products


@pytest.mark.parametrize(
    "resize",
    [
        nn.Upsample((3, 5)),
        nn.Upsample((3, 5), mode="bilinear"),
        nn.AdaptiveAvgPool2d((3, 5)),
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.ZeroPad2d((2, 2, 1, 1))),
    ],
    ids=repr,
)
def test_sizes_change_in_float64_too(tmp_path: Path, resize: nn.Layer) -> None:
    model = nn.Sequential(resize, nn.Flatten(), nn.Linear(30, 2, dtype="float64", rng=1))
    exported = to_onnx(model, tmp_path / "model.onnx", (2, 6, 4))
    assert exported.dtype == "float64"
    assert exported.difference is not None and exported.difference < 1e-14


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(2, 3, (3, 4), (2, 1), (1, 2), rng=0),
        nn.MaxPool2d((3, 4), (2, 1), (1, 2)),
        nn.AvgPool2d((3, 4), (2, 1), (1, 2)),
        nn.Conv2d(2, 4, (3, 4), padding="same", dilation=(1, 2), groups=2, rng=0),
        nn.Upsample((3, 11)),
        nn.ZeroPad2d((1, 2, 3, -1)),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_height_and_width_are_not_confused(tmp_path: Path, layer: nn.Layer) -> None:
    exported = to_onnx(layer, tmp_path / "model.onnx", (2, 7, 9))
    assert sum(exported.nodes.values()) - exported.nodes.get("Constant", 0) == 1
    close(run(tmp_path / "model.onnx", normal(4, 2, 7, 9)), layer(normal(4, 2, 7, 9)))


def test_a_parameter_used_twice_stands_in_the_file_once(tmp_path: Path) -> None:
    layer = nn.Linear(3, 3, rng=0)
    model = nn.Sequential(layer, nn.Tanh(), layer)
    to_onnx(model, tmp_path / "model.onnx", (3,))
    file = onnx.load(tmp_path / "model.onnx")
    assert [w.name for w in file.graph.initializer] == ["0.weight", "0.bias"]
    close(run(tmp_path / "model.onnx", normal(4, 3)), model(normal(4, 3)))


def test_parameters_may_be_called_input_and_output(tmp_path: Path) -> None:
    class Named(nn.Layer):
        def __init__(self) -> None:
            self.input, self.output = (nn.Parameter(normal(3)) for _ in range(2))

        def forward(self, x: Any, *, training: bool = False, rng: Any = None) -> Any:
            return (x + self.input.data) * self.output.data, None

    to_onnx(Named(), tmp_path / "model.onnx", (3,))
    close(run(tmp_path / "model.onnx", normal(4, 3)), Named()(normal(4, 3)))


def test_two_files_of_one_model_are_equal(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 4, rng=0), nn.GELU(), nn.LogSoftmax())
    for name in "ab":
        to_onnx(model, tmp_path / name, (3,))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


# --- the model -----------------------------------------------------------------------------------


def test_the_model_stays_as_it_is(tmp_path: Path) -> None:
    model = xbp.models.MLP(3, 4, 2, rng=0)
    x = normal(5, 3)
    y, backward = model.forward(x, training=True)
    backward(y)
    data = [(p.data, p.grad) for p in model.parameters()]
    before = [(d.copy(), g.copy()) for d, g in data]
    to_onnx(model, tmp_path / "model.onnx", (3,))
    for p, pair, copies in zip(model.parameters(), data, before, strict=True):
        assert p.data is pair[0] and p.grad is pair[1]
        np.testing.assert_array_equal(p.data, copies[0])
        np.testing.assert_array_equal(p.grad, copies[1])


def test_a_model_on_any_backend_is_exported(tmp_path: Path, backend: xbp.Backend) -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3, rng=0), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2, rng=1)
    )
    exported = to_onnx(model, tmp_path / "model.onnx", (1, 4, 4))
    assert exported.difference is not None and exported.difference <= 1e-5 * exported.largest
    x = normal(2, 1, 4, 4)
    close(run(tmp_path / "model.onnx", x), xbp.to_numpy(model(xbp.asarray(x))))


def module(path: Path, name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def test_layers_of_ones_own_are_exported(tmp_path: Path) -> None:
    own = module(ROOT / "examples" / "own_layer" / "gated" / "layer.py", "gated_layer")
    custom = module(ROOT / "examples" / "custom_layer.py", "custom_layer")
    model = nn.Sequential(own.GatedLinear(3, 8, rng=0), custom.RMSNorm(8), nn.Linear(8, 2, rng=1))
    to_onnx(model, tmp_path / "model.onnx", (3,))
    x = normal(4, 3)
    close(run(tmp_path / "model.onnx", x), model(x))


# --- refusals ------------------------------------------------------------------------------------


class Bad(nn.Layer):
    """A layer with a data-dependent branch."""

    def __init__(self, function: Any) -> None:
        self.function = function

    def forward(self, x: Any, *, training: bool = False, rng: Any = None) -> Any:
        return self.function(x), None


class Twice(nn.Layer):
    """A user's own combinator."""

    def __init__(self, layer: nn.Layer) -> None:
        self.inner = layer

    def forward(self, x: Any, *, training: bool = False, rng: Any = None) -> Any:
        return self.inner(self.inner(x)), None


class Unflatten(nn.Layer):
    def forward(self, x: Any, *, training: bool = False, rng: Any = None) -> Any:
        return self.check_input(x).reshape(x, (-1, 1, 3, 3)), None


def lossless(x: Any) -> Any:
    """A node for which onnxruntime has no kernel: a convolution of float64."""
    if not isinstance(x, ndonnx.Array):
        return x
    op = __import__("spox.opset.ai.onnx.v21", fromlist=["conv"])
    image = ndonnx.astype(ndonnx.reshape(x, (-1, 1, 3, 3)), ndonnx.float64)
    return ndonnx.asarray(op.conv(image.unwrap_spox(), ndonnx.ones((1, 1, 1, 1)).unwrap_spox()))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x * float(x[0, 0]),
        lambda x: x if x[0, 0] > 0 else -x,
        lambda x: np.exp(np.asarray(x)),
        lambda x: x.no_such_attribute if isinstance(x, ndonnx.Array) else x,
        lambda x: np.ones_like(xbp.to_numpy(x)),
    ],
    ids=["float", "if", "numpy", "attribute", "host"],
)
@pytest.mark.parametrize(
    ("wrap", "where"),
    [
        (lambda bad: bad, "Bad()"),
        (lambda bad: nn.Sequential(nn.Linear(3, 3, rng=0), nn.Sequential(bad)), "Bad() at '1.0'"),
        (lambda bad: Twice(bad), "Bad() at 'inner'"),
    ],
    ids=["alone", "nested", "combined"],
)
def test_what_cannot_be_recorded_is_refused_by_name(
    tmp_path: Path, function: Any, wrap: Any, where: str
) -> None:
    with pytest.raises(InputError) as caught:
        to_onnx(wrap(Bad(function)), tmp_path / "model.onnx", (3,))
    message = str(caught.value)
    assert message.startswith(f"{where} cannot be exported to ONNX (")
    assert message.endswith("of the Array API alone, and read no value of an array")
    assert "\n" not in message
    assert list(tmp_path.iterdir()) == []


def test_a_layer_that_counts_its_batch_is_told_what_to_give(tmp_path: Path) -> None:
    model = nn.Sequential(Bad(lambda x: sum(x[n : n + 1, :] for n in range(x.shape[0]))))
    with pytest.raises(InputError, match=r"Bad\(\) at '0' .* give batch_size"):
        to_onnx(model, tmp_path / "model.onnx", (3,))
    to_onnx(model, tmp_path / "model.onnx", (3,), batch_size=2)


def test_a_convolution_in_one_pass_with_its_relu_is_named_itself(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Flatten(), Unflatten(), nn.Conv2d(1, 2, 2, rng=0), nn.ReLU())
    with pytest.raises(InputError, match=r"^Conv2d\(1, 2, .*\) at '2' cannot .* give batch_size"):
        to_onnx(model.astype("float64"), tmp_path / "model.onnx", (1, 3, 3))


def test_what_onnxruntime_cannot_run_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Unflatten, "forward", lambda self, x, **_: (lossless(x), None))
    with pytest.raises(InputError, match=r"^onnxruntime cannot run the file \(.* nothing was"):
        to_onnx(nn.Sequential(Unflatten()), tmp_path / "model.onnx", (9,))
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_computes_something_else_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = export.run
    monkeypatch.setattr(export, "run", lambda content, inputs: 1.01 * right(content, inputs))
    with pytest.raises(InputError, match=r"^Linear differs by .* so nothing was written"):
        to_onnx(nn.Linear(3, 2, rng=0), tmp_path / "model.onnx", (3,))
    assert list(tmp_path.iterdir()) == []


def test_without_onnxruntime_nothing_is_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    exported = to_onnx(nn.Linear(3, 2, rng=0), tmp_path / "model.onnx", (3,))
    assert exported.difference is None
    assert (tmp_path / "model.onnx").exists()


def test_without_ndonnx_one_sentence_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ndonnx", None)
    with pytest.raises(BackendError, match=r"ndonnx is needed .* pip install ndonnx"):
        to_onnx(nn.Linear(3, 2, rng=0), tmp_path / "model.onnx", (3,))


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        (3, {}, "input_shape must be the shape of one sample"),
        ((0,), {}, "each size in input_shape must be an integer of at least 1, got 0"),
        ((3,), {"batch_size": 0}, "batch_size must be an integer of at least 1, got 0"),
        ((4,), {}, "expects input (…, 3), got shape (3, 4)"),
    ],
)
def test_wrong_arguments_are_refused(
    tmp_path: Path, shape: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError) as caught:
        to_onnx(nn.Linear(3, 2, rng=0), tmp_path / "model.onnx", shape, **options)
    assert message in str(caught.value)


def test_a_folder_that_is_missing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot write"):
        to_onnx(nn.ReLU(), tmp_path / "no" / "model.onnx", (3,))


# --- the graph -----------------------------------------------------------------------------------


class Chooses(nn.Layer):
    """An ``If`` that is no matter of emptiness: -x where the largest entry is positive, else x + s.

    One of its branches reads a parameter that nothing else does; another parameter is read by none.
    """

    def __init__(self) -> None:
        self.shift, self.unused = (nn.Parameter(normal(3)) for _ in range(2))

    def forward(self, x: Any, *, training: bool = False, rng: Any = None) -> Any:
        if not isinstance(x, ndonnx.Array):
            return (-x if x.max() > 0 else x + self.shift.data), None
        op = __import__("spox.opset.ai.onnx.v21", fromlist=["if_"])
        positive = ndonnx.max(ndonnx.abs(x) + x) > 0
        (y,) = op.if_(
            positive.unwrap_spox(),
            then_branch=lambda: [(-x).unwrap_spox()],
            else_branch=lambda: [(x + self.shift.data).unwrap_spox()],
        )
        return ndonnx.asarray(y), None


def test_a_choice_that_depends_on_values_is_left_alone(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Softplus(), lenet1998.Negation(), Chooses(), nn.Softplus())
    exported = to_onnx(model, tmp_path / "model.onnx", (3,))
    assert exported.nodes["If"] == 1
    weights = onnx.load(tmp_path / "model.onnx").graph.initializer
    assert [weight.name for weight in weights] == ["2.shift"]
    twice = nn.Sequential(Chooses(), Chooses())
    to_onnx(twice, tmp_path / "twice.onnx", (3,))
    for x in (normal(2, 3), -np.abs(normal(2, 3))):
        close(run(tmp_path / "model.onnx", x), model(x))
        close(run(tmp_path / "twice.onnx", x), twice(x))


def test_what_only_hands_on_its_input_is_one_node(tmp_path: Path) -> None:
    exported = to_onnx(nn.Sequential(nn.Dropout(), nn.Dropout()), tmp_path / "model.onnx", (3,))
    assert (exported.nodes, exported.opset) == ({"Identity": 1}, 21)
    np.testing.assert_array_equal(run(tmp_path / "model.onnx", normal(2, 3)), normal(2, 3))


def test_an_output_that_is_also_used_inside_keeps_its_name(tmp_path: Path) -> None:
    model = Twice(nn.Tanh())
    to_onnx(model, tmp_path / "model.onnx", (3,))
    close(run(tmp_path / "model.onnx", normal(2, 3)), model(normal(2, 3)))


def test_nothing_runs_in_float64_by_accident() -> None:
    """Constants take the dtype of the other operand."""
    for layer in (nn.GELU(), nn.Softplus(), nn.ELU(), nn.LeakyReLU(), nn.Softmax()):
        file, _ = traced(layer, normal(2, 3), None)
        typed = onnx.shape_inference.infer_shapes(file)
        kinds = {value.type.tensor_type.elem_type for value in typed.graph.value_info}
        assert onnx.TensorProto.DOUBLE not in kinds
