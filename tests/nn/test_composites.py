"""Containers, composites, and mistakes of hand-written forwards."""

from __future__ import annotations

import copy
import pickle
import threading
from typing import Any

import numpy as np
import pytest

import xbp
from xbp import nn, optim
from xbp.errors import BackendError, InputError
from xbp.nn.containers import MOST, _may_fit
from xbp.nn.watch import is_handwritten, watched
from xbp.random import RandomStream
from xbp.testing import assert_no_host_sync, check_gradients, check_parity
from xbp.testing.cases.containers import Block

X = np.random.default_rng(0).normal(size=(5, 4))
IMAGES = np.random.default_rng(0).normal(size=(2, 3, 6, 6))
DRAW: dict[str, Any] = {"dtype": "float64", "rng": 0}


def linear(seed: int = 0, features: int = 4, out: int = 4) -> nn.Linear:
    return nn.Linear(features, out, dtype="float64", rng=seed)


# --- containers -----------------------------------------------------------------------------------


def test_branches_draw_from_one_stream_in_their_order() -> None:
    x = np.ones((3, 40))
    (a, b), _ = nn.Parallel(nn.Dropout(), nn.Dropout()).forward(x, training=True, rng=0)
    stream = RandomStream(0)
    alone = [nn.Dropout().forward(x, training=True, rng=stream)[0] for _ in range(2)]
    assert np.array_equal(a, alone[0]) and np.array_equal(b, alone[1])
    assert not np.array_equal(a, b)
    y, _ = nn.Residual(nn.Dropout(), shortcut=nn.Dropout()).forward(x, training=True, rng=0)
    assert np.array_equal(y, a + b)


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Residual(linear(0), shortcut=linear(1)),
        lambda: nn.Residual(linear(0), nn.Tanh()),
        lambda: nn.Sequential(nn.Parallel(linear(0), linear(1)), nn.Concatenate()),
    ],
)
def test_the_gradient_of_the_input_can_be_left_out(make: Any) -> None:
    one, other = make(), make()
    y, backward = one.forward(X)
    dy = np.random.default_rng(1).normal(size=y.shape)
    assert nn.for_parameters(backward)(dy) is None
    other.forward(X)[1](dy)
    for p, q in zip(one.parameters(), other.parameters(), strict=True):
        assert np.array_equal(p.grad, q.grad)


def test_inference_equals_the_forward() -> None:
    for layer in (
        nn.Residual(linear(0), nn.Tanh()),
        nn.Residual(linear(0), shortcut=linear(1)),
        nn.Parallel(linear(0), last=nn.Identity()),
    ):
        expected, found = layer.forward(X)[0], layer(X)
        assert np.array_equal(np.asarray(found), np.asarray(expected))


def test_names_of_state_dicts() -> None:
    layer = nn.Parallel(linear(), nn.ReLU(), left=nn.Residual(linear(), shortcut=linear()))
    names = [name.rpartition(".")[0] for name, _ in layer.named_parameters()]
    assert names[::2] == ["0", "left.body", "left.shortcut"]
    twin = nn.Parallel(linear(7), nn.ReLU(), left=nn.Residual(linear(8), shortcut=linear(9)))
    twin.load_state_dict(layer.state_dict())
    assert np.array_equal(twin(X)[2], layer(X)[2])
    assert len(layer) == 3 and "(left): Residual(" in repr(layer)


def test_a_shared_layer_gets_both_gradients() -> None:
    shared = linear()
    check_gradients(nn.Residual(shared, nn.Tanh(), shared), X)
    check_gradients(nn.Sequential(nn.Parallel(shared, shared), nn.Concatenate()), X)


def test_containers_do_not_wait_for_the_device() -> None:
    pytest.importorskip("array_api_strict")
    with xbp.use_backend("array_api_strict"):
        model = nn.Sequential(
            nn.Parallel(nn.Residual(nn.Linear(4, 4, rng=0)), nn.Identity()), nn.Concatenate(-1)
        )
        x = xbp.asarray(X, dtype="float32")
        with assert_no_host_sync():
            y, backward = model.forward(x, training=True)
            backward(y)
            model(x)


def test_gradients_elsewhere_are_refused() -> None:
    pytest.importorskip("torch")
    with xbp.use_backend("torch"):
        x = xbp.asarray(X)
        _, backward = nn.Parallel(nn.Identity(), nn.Identity()).forward(x)
        _, backward_around = nn.Residual(linear()).to("torch").forward(x)
    with pytest.raises(BackendError, match=r"got a gradient on numpy .* its output is on torch"):
        backward((x, X))
    with pytest.raises(BackendError, match=r"^Residual got a gradient on numpy \(cpu\), where"):
        backward_around(X)
    with pytest.raises(BackendError, match="another is on numpy"):
        nn.Concatenate().forward((x, X))


@pytest.mark.parametrize("axis", [1, 2, 3, -1])
@pytest.mark.parametrize("count", [1, 2, MOST + 1, 2 * MOST + 1])
def test_any_number_of_arrays_is_joined_and_split(count: int, axis: int) -> None:
    parts = np.split(np.arange(36.0 * count).reshape(1, 2, 3, 6 * count), count, axis=3)
    parts = [np.moveaxis(part, 3, axis) for part in parts]
    y, backward = nn.Concatenate(axis).forward(tuple(parts))
    assert np.array_equal(y, np.concat(parts, axis=axis))
    found = backward(y)
    assert len(found) == count and all(map(np.array_equal, found, parts))


@pytest.mark.parametrize(
    ("one", "other", "fit"),
    [
        ((2, 3), (2, 3), True),
        ((None, 3), (2, 3), True),
        ((2, 3), (2, None), True),
        ((None, 3), (2, 4), False),
        ((2, 3), (2, 3, 1), False),
    ],
)
def test_unknown_sizes_may_fit(one: Any, other: Any, fit: bool) -> None:
    assert _may_fit(one, other) == fit


BAD = [
    (lambda: nn.Residual(), "Residual takes at least one layer"),
    (lambda: nn.Residual(3), "takes layers; argument 0 is a int"),
    (lambda: nn.Residual(nn.ReLU(), shortcut=nn.ReLU), "shortcut must be a layer, got the class"),
    (
        lambda: nn.Residual(linear(0, 4, 3))(X),
        r"make \(5, 3\), where the input of shape \(5, 4\); give it a shortcut=",
    ),
    (lambda: nn.Residual(linear(0, 4, 3)).forward(X), r"make \(5, 3\), where the input .*\(5, 4\)"),
    (
        lambda: nn.Residual(linear(0, 4, 3), shortcut=linear()).forward(X),
        r"make \(5, 3\), where its shortcut makes an output of shape \(5, 4\)",
    ),
    (lambda: nn.Parallel(), "Parallel takes at least one layer"),
    (lambda: nn.Parallel(nn.ReLU(), left=3), "branch 'left' must be a layer, got an int"),
    (
        lambda: nn.Parallel(nn.ReLU(), nn.ReLU()).forward(X)[1](X),
        "has 2 outputs, .* a tuple of as many gradients, got a ndarray",
    ),
    (lambda: nn.Parallel(nn.ReLU()).forward(X)[1]((X, X)), "has 1 outputs.*got a tuple of 2"),
    (lambda: nn.Concatenate(0), "axis must be an integer, and not 0"),
    (lambda: nn.Concatenate("1"), "axis must be an integer"),  # type: ignore[arg-type]
    (lambda: nn.Concatenate()(X), "takes a tuple of arrays, as Parallel makes it, got a ndarray"),
    (lambda: nn.Concatenate()(()), "takes a tuple of arrays"),  # type: ignore[arg-type]
    (lambda: nn.Concatenate(2)((X, X)), "agree in all but that axis"),
    (lambda: nn.Concatenate(-2)((X, X)), "agree in all but that axis"),
    (lambda: nn.Concatenate()((X, X[:2])), r"agree in all but that axis, got \(5, 4\).*\(2, 4\)"),
    (lambda: nn.Concatenate(2)((IMAGES, IMAGES[:, 1:])), "agree in all but that axis"),
    (lambda: nn.Concatenate(2)((IMAGES, IMAGES[..., 1:])), "agree in all but that axis"),
    (lambda: nn.Concatenate()((X, X.astype("f4"))), "agree in all but that axis.*float32"),
    (lambda: nn.Concatenate()((X, [1.0])), "expected an array, got list"),
    (lambda: nn.Concatenate()(([1.0], X)), "expected an array, got list"),
    (lambda: nn.Concatenate()(([1.0],)), "expected an array, got list"),
    (lambda: nn.Concatenate().forward((X, X))[1](X), r"gradient of an output of shape \(5, 8\)"),
    (lambda: nn.Reshape(-1, -1), r"only one size of a shape can be -1, got \(-1, -1\)"),
    (lambda: nn.Reshape(0), "a size must be an integer of at least 1, got 0"),
    (lambda: nn.Reshape(3)(X), r"Reshape\(3\) cannot make samples .* input \(5, 4\)"),
    (lambda: nn.Reshape(3, -1)(X), r"cannot make samples .* input \(5, 4\)"),
    (lambda: nn.Reshape(2)(X[0, 0] * np.ones(())), "cannot make samples"),
    (lambda: nn.Permute(1, 0), r"axes must be 0, that of the samples, .* got \(1, 0\)"),
    (lambda: nn.Permute(0, 2), "axes must be 0"),
    (lambda: nn.Permute(), "axes must be 0"),
    (lambda: nn.Permute(0, -1), "an axis must be an integer of at least 0"),
    (lambda: nn.Permute(0, 2, 1)(X), r"expects input of 3 axes, got shape \(5, 4\)"),
]


@pytest.mark.parametrize(("call", "sentence"), BAD, ids=[sentence for _, sentence in BAD])
def test_bad_input_gets_one_sentence(call: Any, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence) as error:
        call()
    assert "\n" not in str(error.value)


# --- composites -----------------------------------------------------------------------------------


class ByHand(nn.Layer):
    """The block of the table, with a hand-written backward."""

    def __init__(self, block: Block) -> None:
        self.block = block

    def forward(self, x: Any, *, training: bool = False, rng: Any = None) -> Any:
        block, backs, y = self.block, [], x
        for layer in (block.conv1, block.relu, block.conv2):
            y, back = layer.forward(y, training=training, rng=rng)
            backs.append(back)
        s, back_s = block.downsample.forward(x, training=training, rng=rng)
        y, back_y = block.relu.forward(y + s, training=training, rng=rng)

        def backward(dy: Any) -> Any:
            dy = back_y(dy)
            dx = dy
            for back in reversed(backs):
                dx = back(dx)
            return dx + back_s(dy)

        return y, backward


def test_a_composite_is_what_one_writes_by_hand() -> None:
    block = Block(3, 4, 2, **DRAW)
    y, backward = block.forward(IMAGES, training=True)
    dy = np.random.default_rng(1).normal(size=y.shape)
    dx, gradients = backward(dy), [p.grad for p in block.parameters()]
    for parameter in block.parameters():
        parameter.zero_grad()
    by_hand, back = ByHand(block).forward(IMAGES, training=True)
    # Sums of some dozens of products, possibly in another order in fused layers.
    np.testing.assert_allclose(y, by_hand, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(dx, back(dy), rtol=1e-12, atol=1e-13)
    for parameter, gradient in zip(block.parameters(), gradients, strict=True):
        np.testing.assert_allclose(gradient, parameter.grad, rtol=1e-12, atol=1e-12)
    assert list(block.state_dict()) == [
        *("conv1.weight", "conv1.bias", "conv2.weight", "conv2.bias"),
        *("downsample.0.weight", "downsample.0.bias"),
    ]
    assert "(conv1): Conv2d(" in repr(block)


def assert_equal_but_for_order(found: Any, expected: Any) -> None:
    """A chain may add the terms of a product in another order than its layers one by one."""
    np.testing.assert_allclose(found, expected, rtol=1e-13, atol=1e-15)


def test_an_arrangement_is_made_once_and_again_where_something_has_changed() -> None:
    made = []

    class Counted(nn.Composite):
        def __init__(self) -> None:
            self.first, self.more, self.wide = linear(0), [linear(1)], False

        def compose(self) -> nn.Layer:
            made.append(1)
            return nn.Sequential(self.first, *self.more)

    model = Counted()
    for _ in range(3):
        model.forward(X)
        model(X)
    assert len(made) == 1
    model.first = linear(5)
    assert_equal_but_for_order(model(X), model.more[0](model.first(X)))
    model.more.append(nn.Tanh())
    assert_equal_but_for_order(model(X), np.tanh(model.more[0](model.first(X))))
    model.wide = True
    model(X)
    assert len(made) == 4
    model.new = None
    model(X)
    assert len(made) == 5
    for twin in (copy.deepcopy(model), copy.copy(model)):
        twin.first = linear(6)
        assert not np.array_equal(twin(X), model(X))


class Small(nn.Composite):
    def __init__(self) -> None:
        self.first, self.drop = linear(0), nn.Dropout(0.5)

    def compose(self) -> nn.Layer:
        return nn.Sequential(self.first, nn.Tanh(), self.drop)


def test_a_composite_can_be_pickled_moved_and_converted() -> None:
    model = Small()
    y = model(X)
    assert np.array_equal(pickle.loads(pickle.dumps(model))(X), y)
    for name in xbp.available_backends():
        model.to(name)
        found = xbp.to_numpy(model(placed(name)))
        np.testing.assert_allclose(found, y, rtol=1e-12)
    model.to("numpy").astype("float32")
    assert model(X.astype("f4")).dtype == np.float32


def placed(name: str) -> Any:
    with xbp.use_backend(name):
        return xbp.asarray(X)


def test_training_and_rng_reach_every_layer() -> None:
    model = Small()
    y = model.forward(X, training=True, rng=0)[0]
    mask = nn.Dropout(0.5).forward(np.ones_like(X), training=True, rng=0)[0]
    assert_equal_but_for_order(y, mask * np.tanh(model.first(X)))
    check_gradients(model, X)
    with pytest.raises(InputError, match=r"Dropout\(p=0.5\) draws its mask .* rng, which is None"):
        model.forward(X, training=True)


def test_a_summary_has_the_shapes_of_all_outputs() -> None:
    model = nn.Sequential(nn.Parallel(nn.ReLU(), linear(0, 4, 2)), nn.Concatenate())
    rows = nn.summary(model, (4,))
    assert [row.output_shape for row in rows] == [((4,), (2,)), (6,)]
    assert [row.sizes for row in rows] == ["4, 2", "6"]


def test_a_softmax_at_the_end_of_a_composite_is_noticed() -> None:
    class Ends(Small):
        def compose(self) -> nn.Layer:
            return nn.Sequential(self.first, nn.Softmax())

    model = Ends()
    with pytest.warns(UserWarning, match="end without its Softmax"):
        xbp.Trainer(model, nn.CrossEntropyLoss(), optim.SGD(model.parameters(), 0.1))


class Wrongly(nn.Composite):
    def __init__(self, compose: Any) -> None:
        self.layer, self.how = linear(), compose

    def compose(self) -> Any:
        return self.how(self)


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        (lambda self: None, "Wrongly.compose must return a layer .*, it returned None"),
        (lambda self: self, "must return a layer .*, it returned itself"),
        (
            lambda self: nn.Sequential(self.layer, linear()),
            r"makes a layer with parameters \('1.weight'\).*make it in __init__",
        ),
    ],
)
def test_an_arrangement_of_something_else_is_refused(how: Any, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        Wrongly(how)(X)
    with pytest.raises(NotImplementedError, match="has no compose; define compose"):
        nn.Composite()(X)


# --- hand-written forwards ------------------------------------------------------------------------


class Hand(nn.Layer):
    """A correct forward."""

    def __init__(self) -> None:
        self.conv, self.drop = linear(), nn.Dropout(0.5)

    def forward(self, x: Any, *, training: bool = False, rng: Any = None) -> Any:
        h, back = self.conv.forward(x)
        y, undrop = self.drop.forward(h, training=training, rng=rng)
        return y, lambda dy: back(undrop(dy))


class Calls(Hand):
    def forward(self, x: Any, *, training: bool = False, rng: Any = None) -> Any:
        h = self.conv(x)
        return h, lambda dy: dy


class CallsSequential(Hand):
    def __init__(self) -> None:
        self.conv = nn.Sequential(linear(), nn.Tanh())

    forward = Calls.forward


class InList(Hand):
    def __init__(self) -> None:
        self.blocks = [linear()]

    def forward(self, x: Any, *, training: bool = False, rng: Any = None) -> Any:
        return self.blocks[0](x), lambda dy: dy


class WithoutTraining(Hand):
    def forward(self, x: Any, *, training: bool = False, rng: Any = None) -> Any:
        h, back = self.conv.forward(x)
        y, undrop = self.drop.forward(h)
        return y, lambda dy: back(undrop(dy))


class WithoutRng(Hand):
    def forward(self, x: Any, *, training: bool = False, rng: Any = None) -> Any:
        h, back = self.conv.forward(x)
        y, undrop = self.drop.forward(h, training=training)
        return y, lambda dy: back(undrop(dy))


class OnPurpose(Hand):
    """Intended inference, and a dropout that is switched off."""

    def forward(self, x: Any, *, training: bool = False, rng: Any = None) -> Any:
        h, back = self.conv.forward(x)
        y, undrop = self.drop.forward(h, training=False)
        fixed = self.conv.forward(x)[0] > 1e9
        return y + fixed, lambda dy: back(undrop(dy))


MISTAKES = [
    (Calls, r"Calls calls self\.conv\(x\) in its forward: that is inference.*nn\.Composite"),
    (CallsSequential, r"CallsSequential calls self\.conv\(x\) in its forward"),
    (InList, r"InList calls self\.blocks\.0\(x\) in its forward"),
    (WithoutTraining, r"WithoutTraining runs self\.drop\.forward\(x\) without training"),
    (WithoutRng, r"Dropout\(p=0\.5\) draws its mask in training from rng, which is None"),
]


def trained(model: nn.Layer) -> Any:
    model = nn.Sequential(model, nn.Linear(4, 2, **DRAW))
    trainer = xbp.Trainer(model, nn.MSELoss(), optim.SGD(model.parameters(), 0.1), rng=0)
    return trainer.fit(X, X[:, :2], batch_size=2, verbose=False)


@pytest.mark.parametrize(("kind", "sentence"), MISTAKES)
def test_a_mistake_is_named_by_checks_and_training(kind: Any, sentence: str) -> None:
    for use in (
        lambda: check_gradients(kind(), X),
        lambda: check_parity(kind, X),
        lambda: trained(kind()),
    ):
        with pytest.raises(InputError, match=sentence) as error:
            use()  # type: ignore[no-untyped-call]
        assert "\n" not in str(error.value)
    assert not hasattr(nn.Layer.__call__, "__wrapped__")  # classes are unchanged


@pytest.mark.parametrize("kind", [Hand, OnPurpose, Small, Block])
def test_what_is_right_passes(kind: Any) -> None:
    if kind is Block:
        check_gradients(Block(3, 3, **DRAW), IMAGES)
        return
    trained(kind())
    if kind is not OnPurpose:  # with a derivative that ignores x > 10⁹
        check_gradients(kind(), X)
        check_parity(kind, X)


def test_only_forwards_of_others_are_watched() -> None:
    assert not is_handwritten(nn.Sequential(nn.Residual(linear()), nn.LSTM(2, 2, rng=0)))
    assert not is_handwritten(Small())
    assert is_handwritten(nn.Sequential(Hand()))


def test_other_threads_are_not_watched() -> None:
    found: list[Any] = []

    class Waiting(Hand):
        def forward(self, x: Any, *, training: bool = False, rng: Any = None) -> Any:
            other = threading.Thread(target=lambda: found.append(Calls().forward(X)[0]))
            other.start()
            other.join()
            return super().forward(x, training=training, rng=rng)

    model = nn.Sequential(Waiting(), Calls())
    with watched(model):
        model.layers[0].forward(X, training=True, rng=0)
    assert np.array_equal(found[0], linear()(X))


def test_nothing_is_left_of_a_watch_that_failed() -> None:
    model = Calls()
    with pytest.raises(InputError), watched(model):
        model.forward(X)
    assert np.array_equal(model.forward(X)[0], model.conv(X))
