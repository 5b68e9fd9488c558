"""Names of parameters: those of sublayers, shared ones, none."""

from nn.core.blocks import NAMES, Block, Twice, mlp

from xbp import nn
from xbp.backend import Backend, backend_of


def test_parameters_are_named_after_attributes_list_places_and_nesting() -> None:
    block = Block()
    assert [name for name, _ in block.named_parameters()] == NAMES
    assert [id(p) for p in block.parameters()] == [id(p) for _, p in block.named_parameters()]
    assert list(block.state_dict()) == NAMES
    children = ["inner", "many.0", "many.1", "many.2", "pair.0", "pair.1", "mixed.2"]
    assert [name for name, _ in block.children()] == children


def test_sequential_names_its_layers_by_their_places() -> None:
    names = ["0.weight", "0.bias", "2.1.weight", "2.1.bias", "3.weight", "3.bias"]
    assert [name for name, _ in mlp().named_parameters()] == names


def test_a_shared_layer_has_its_parameters_once_but_its_state_under_each_name() -> None:
    model = Twice()
    assert [name for name, _ in model.named_parameters()] == ["first.weight", "first.bias"]
    assert len(model.parameters()) == 2
    state = model.state_dict()
    assert list(state) == ["first.weight", "first.bias", "second.weight", "second.bias"]
    assert state["first.weight"].tolist() == state["second.weight"].tolist()
    model.load_state_dict({name: array + 1 for name, array in state.items()})
    assert model.second is model.first
    assert model.first.state_dict()["bias"].tolist() == (state["first.bias"] + 1).tolist()


def test_a_shared_parameter_is_moved_and_converted_once(strict: Backend) -> None:
    model = Twice()
    tied = nn.Linear(2, 2, rng=1)
    tied.weight = model.first.weight
    pair = nn.Sequential(model.first, tied).to(strict).astype("float64")
    assert tied.weight is model.first.weight
    assert backend_of(tied.weight.data) == strict
    assert [name for name, _ in pair.named_parameters()] == ["0.weight", "0.bias", "1.bias"]


def test_a_layer_without_parameters_has_no_state_and_no_backend() -> None:
    layer = nn.ReLU()
    assert layer.parameters() == []
    assert layer.state_dict() == {}
    assert layer.backend() is None
    layer.load_state_dict({})
    assert layer.to("numpy") is layer
