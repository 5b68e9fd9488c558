"""Names of PyTorch and Keras that layers do not have."""

import copy
import pickle
from typing import Any

import pytest

from xbp import nn, optim
from xbp.nn.elsewhere import OF_LAYERS, OF_NN, OF_OPTIM


@pytest.mark.parametrize("name", OF_LAYERS)
def test_a_name_of_another_library_says_what_to_write(name: str) -> None:
    model: Any = nn.Sequential(nn.Linear(3, 2, rng=0))
    with pytest.raises(AttributeError) as error:
        getattr(model, name)
    missing, advice = str(error.value).split("; in xbp ", maxsplit=1)
    assert missing == f"'Sequential' object has no attribute '{name}'"
    assert advice == OF_LAYERS[name]
    assert not any(hasattr(layer, name) for layer in (nn.ReLU(), nn.LSTM(2, 2), nn.BatchNorm1d(2)))


@pytest.mark.parametrize("name", OF_NN)
def test_a_class_of_another_library_says_what_to_use(name: str) -> None:
    with pytest.raises(AttributeError, match=f"'xbp.nn' has no attribute '{name}'; in xbp it is "):
        getattr(nn, name)


@pytest.mark.parametrize("name", OF_OPTIM)
def test_a_name_of_torch_optim_says_what_to_write(name: str) -> None:
    said = f"'xbp.optim' has no attribute '{name}'; in xbp it is "
    with pytest.raises(AttributeError, match=said):
        getattr(optim, name)
    with pytest.raises(AttributeError, match=r"^module 'xbp\.optim' has no attribute 'Adan'$"):
        optim.Adan  # type: ignore[attr-defined]  # noqa: B018


def test_any_other_name_is_missing_as_ever() -> None:
    layer: Any = nn.ReLU()
    with pytest.raises(AttributeError, match=r"^'ReLU' object has no attribute 'weigth'$") as error:
        layer.weigth  # noqa: B018
    assert (error.value.name, error.value.obj) == ("weigth", layer)
    with pytest.raises(AttributeError, match=r"^module 'xbp\.nn' has no attribute 'Conv2D'$"):
        nn.Conv2D  # type: ignore[attr-defined]  # noqa: B018


def test_layers_are_copied_and_pickled_as_before() -> None:
    layer = nn.Sequential(nn.Linear(3, 2, rng=0))
    for other in (copy.copy(layer), copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert str(other) == str(layer)
