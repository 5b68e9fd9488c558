"""The parts of a layer: found in containers, by PyTorch's names; refused in hidden places."""

from __future__ import annotations

import itertools
import types
import weakref
from collections import OrderedDict, UserDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pytest

import xbp
from xbp import nn, optim
from xbp.errors import BackendError, InputError
from xbp.nn.sequential import named_outputs


class Holder(nn.Layer):
    """A layer that keeps its argument in the attribute `held`."""

    def __init__(self, held: Any) -> None:
        self.held = held

    def forward(
        self, x: Any, *, training: bool = False, rng: Any = None
    ) -> tuple[Any, nn.Backward]:
        self.check_input(x)
        return x, lambda dy: dy


def linear(seed: int = 0) -> nn.Linear:
    return nn.Linear(2, 2, bias=False, rng=seed)


def scale() -> nn.Parameter:
    return nn.Parameter(np.ones(2, "float32"))


WALKED: dict[str, tuple[Callable[[], Any], list[str]]] = {
    "a list": (lambda: [linear(), 3, scale()], ["held.2", "held.0.weight"]),
    "a dict": (
        lambda: {"left": linear(), "right": scale(), "size": 3},
        ["held.right", "held.left.weight"],
    ),
    "a dict of numbers": (lambda: {0: scale(), 7: scale()}, ["held.0", "held.7"]),
    "lists in lists": (lambda: [[linear()], [linear(), linear()]], [
        *("held.0.0.weight", "held.1.0.weight", "held.1.1.weight"),
    ]),
    "all in all": (
        lambda: {"a": ([{"b": (scale(), None)}], "text")},
        ["held.a.0.0.b.0"],
    ),
    "an ordered dict": (lambda: OrderedDict(a=linear()), ["held.a.weight"]),
    "a dict of one's own": (lambda: UserDict({"a": linear()}), ["held.a.weight"]),
    "a read-only dict": (lambda: types.MappingProxyType({"a": linear()}), ["held.a.weight"]),
    "a deque": (lambda: deque([linear()]), ["held.0.weight"]),
    "layers in layers": (
        lambda: {"a": nn.Sequential(linear(), Holder([linear()]))},
        ["held.a.0.weight", "held.a.1.held.0.weight"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WALKED)
def test_what_containers_hold_is_found_moved_and_saved(name: str) -> None:
    pytest.importorskip("array_api_strict")
    make, names = WALKED[name]
    layer = Holder(make())
    assert [name for name, _ in layer.named_parameters()] == names
    assert list(layer.state_dict()) == names
    other = Holder(make())
    other.load_state_dict({name: 2 + array for name, array in layer.state_dict().items()})
    for name, array in other.state_dict().items():
        np.testing.assert_array_equal(array, 2 + layer.state_dict()[name])
    layer.astype("float64").to("array_api_strict")
    for parameter in layer.parameters():
        assert xbp.to_numpy(parameter.data).dtype == "float64"
        assert xbp.backend.library_of(parameter.data).name == "array_api_strict"  # type: ignore[union-attr]


def test_names_are_those_of_pytorch() -> None:
    torch = pytest.importorskip("torch")
    modules = torch.nn.ModuleDict
    peer = torch.nn.Module()
    peer.blocks = torch.nn.ModuleList([torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)])
    peer.heads = modules({"left": torch.nn.Linear(2, 1), "right": modules({"a": torch.nn.PReLU()})})
    own = Holder(None)
    own.blocks = [nn.Linear(2, 2, rng=0), nn.Linear(2, 2, rng=0)]  # type: ignore[attr-defined]
    own.heads = {"left": nn.Linear(2, 1, rng=0), "right": {"a": nn.PReLU()}}  # type: ignore[attr-defined]
    assert list(own.state_dict()) == list(peer.state_dict())
    own.load_state_dict(peer.state_dict())


def test_a_list_that_grows_later_is_seen() -> None:
    layer = Holder([])
    layer.held.append(linear())
    assert [name for name, _ in layer.named_parameters()] == ["held.0.weight"]


@dataclass
class Pair:
    first: Any


class Slotted:
    __slots__ = ("inside",)

    def __init__(self, inside: Any) -> None:
        self.inside = inside


def closure(layer: Any) -> Any:
    return lambda x: layer(x)


HIDDEN: dict[str, Callable[[], Any]] = {
    "a set": lambda: {linear()},
    "a frozen set": lambda: frozenset([scale()]),
    "a set in a list": lambda: [{linear()}],
    "a generator": lambda: (linear(seed) for seed in range(2)),
    "a map": lambda: map(linear, range(2)),
    "a zip in a dict": lambda: {"a": zip("a", [linear()], strict=True)},
    "an object": lambda: types.SimpleNamespace(layer=linear()),
    "a data class": lambda: Pair(linear()),
    "a data class with a list": lambda: Pair([linear()]),
    "an object in a list": lambda: [Pair(linear())],
    "slots": lambda: Slotted(scale()),
    "a partial function": lambda: partial(print, linear()),
    "a closure": lambda: closure(linear()),
    "somebody's method": lambda: linear().forward,
    "somebody's optimizer": lambda: optim.SGD(linear().parameters(), 0.1),
    "an array of objects": lambda: np.array([linear(), None], object),
    "the keys of a dict": lambda: {linear(): "first"},
    "a dict's values": lambda: {"a": linear()}.values(),
    "an iterator": lambda: iter([linear()]),
    "a dict's iterator": lambda: iter({"a": linear()}.values()),
    "a chain": lambda: itertools.chain([linear()], [linear()]),
    "a cycle": lambda: itertools.cycle([linear()]),
}

USES: dict[str, Callable[[nn.Layer], object]] = {
    "parameters": lambda layer: layer.parameters(),
    "state_dict": lambda layer: layer.state_dict(),
    "load_state_dict": lambda layer: layer.load_state_dict({}),
    "to": lambda layer: layer.to("numpy"),
    "astype": lambda layer: layer.astype("float64"),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("name", HIDDEN)
def test_what_cannot_be_walked_is_refused(name: str, use: str) -> None:
    layer = nn.Sequential(linear(), Holder(HIDDEN[name]()))
    with pytest.raises(InputError, match=r"Holder\.held is a "):
        USES[use](layer)


def test_what_is_found_may_be_held_by_others_too() -> None:
    layer = Holder([linear()])
    layer.also = {"known": {layer.held[0]}}  # type: ignore[attr-defined]
    layer.method = layer.held[0].forward  # type: ignore[attr-defined]
    layer.optimizer = optim.SGD(layer.parameters(), 0.1)  # type: ignore[attr-defined]
    layer.trainer = xbp.Trainer(layer, nn.MSELoss(), layer.optimizer)  # type: ignore[attr-defined]
    assert list(layer.state_dict()) == ["held.0.weight"]


@pytest.mark.parametrize(
    "value",
    [
        {1, 2},
        "text",
        np.ones(3),
        np.random.default_rng(0),
        partial(print, 3),
        xbp.initializers.zeros,
        nn,
        nn.Linear,
        nn.CrossEntropyLoss(),
        [None, {"a": 1.0}, (2,)],
        {"a.b": 1, None: 2, (1, 2): 3},
        itertools.count(),
        np.array([1, None], object),
        {1: 2}.values(),
        weakref.ref(Holder(None)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_whatever_else_holds_no_parts(value: Any) -> None:
    assert Holder(value).parameters() == []


@pytest.mark.parametrize("key", ["a.b", "", None, 1.5, (0, 1), True])
def test_keys_must_be_names(key: Any) -> None:
    with pytest.raises(InputError, match="has the key"):
        Holder({key: linear()}).parameters()


def test_two_keys_may_not_read_the_same() -> None:
    with pytest.raises(InputError, match="has the key '1'"):
        Holder({1: linear(), "1": linear()}).parameters()


def test_circles_are_refused() -> None:
    outer, inner = Holder(None), Holder(None)
    outer.held, inner.held = [inner], {"around": outer}
    with pytest.raises(InputError, match=r"weakref\.proxy"):
        outer.parameters()
    inner.held = weakref.proxy(outer)
    assert outer.parameters() == []
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(InputError, match="holds itself"):
        Holder(loop).parameters()


@pytest.mark.parametrize("attribute", ["layers", "head"])
@pytest.mark.parametrize("kind", ["itself", "inherited"])
def test_what_belongs_to_a_class_is_refused(attribute: str, kind: str) -> None:
    body: dict[str, Any] = {"layers": {"layers": [linear()]}, "head": {"head": linear()}}[attribute]
    own = type("Own", (nn.Layer,), body)
    layer = (own if kind == "itself" else type("Derived", (own,), {}))()
    with pytest.raises(InputError, match=rf"Own\.{attribute} belongs to the class"):
        layer.parameters()
    setattr(layer, attribute, body[attribute])  # a default, found as the layer's own part
    assert [name.rpartition(".")[2] for name in layer.state_dict()] == ["weight"]


def test_slots_are_refused() -> None:
    with pytest.raises(InputError, match="__slots__"):
        type("Slotted", (nn.Layer,), {"__slots__": ("head",)})
    type("Slotted", (nn.Layer,), {"__slots__": ()})


def test_a_sequential_may_have_more_layers() -> None:
    class Net(nn.Sequential):
        def __init__(self) -> None:
            super().__init__(linear(), nn.Tanh())
            self.head = linear(1)
            self.scale = scale()

    net = Net()
    assert sorted(net.state_dict()) == ["0.weight", "head.weight", "scale"]
    assert [name for name, _, _ in named_outputs(net, np.ones((1, 2), "float32"))] == ["0", "1"]


def test_two_parts_may_not_have_one_name() -> None:
    layer = Holder({"a": linear()})
    setattr(layer, "held.a", linear())
    with pytest.raises(InputError, match=r"two parts of .* 'held\.a\.weight'"):
        layer.state_dict()


@pytest.mark.parametrize(
    "held",
    [
        *(lambda p: [p], lambda p: {"a": p}, lambda p: (p,), lambda p: {"a": {"b": [p]}}),
        *(lambda p: OrderedDict(a=p), lambda p: deque([p])),
    ],
)
def test_input_must_fit_parameters_in_containers(held: Callable[[Any], Any]) -> None:
    layer = Holder(held(scale()))
    layer(np.ones((1, 2), "float32"))
    with pytest.raises(InputError, match="float64 input"):
        layer(np.ones((1, 2)))
    pytest.importorskip("array_api_strict")
    with xbp.use_backend("array_api_strict"), pytest.raises(BackendError):
        layer(xbp.asarray(np.ones((1, 2), "float32")))


def test_layers_of_a_dict_are_trained() -> None:
    class Net(nn.Layer):
        def __init__(self) -> None:
            self.parts = {"body": [linear()], "head": nn.Linear(2, 1, rng=1)}

        def forward(
            self, x: Any, *, training: bool = False, rng: Any = None
        ) -> tuple[Any, nn.Backward]:
            head: Any = self.parts["head"]
            body: Any = self.parts["body"]
            h, first = body[0].forward(x, training=training, rng=rng)
            y, second = head.forward(h, training=training, rng=rng)
            return y, lambda dy: first(second(dy))

    model = Net()
    before = model.state_dict()
    optimizer = optim.SGD(model.parameters(), 0.1)
    x = np.random.default_rng(0).normal(size=(8, 2)).astype("float32")
    xbp.Trainer(model, nn.MSELoss(), optimizer, rng=0).fit(x, x[:, :1])
    after = model.state_dict()
    assert list(after) == ["parts.body.0.weight", "parts.head.weight", "parts.head.bias"]
    assert all(np.any(before[name] != after[name]) for name in after)
