"""The models and arguments that a file may name.

A file is data: its model is looked up by name in this table, never imported, and the model takes
no more memory than the weights in the file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any, NoReturn, TypeVar

from xbp import nn
from xbp.arguments import described, integer
from xbp.errors import DataError, InputError, on_one_line
from xbp.models.fast_cifar import FastCIFAR
from xbp.models.gpt import GPT
from xbp.models.lenet import LeNet5
from xbp.models.mlp import MLP
from xbp.models.resnet import WIDTHS, ResNet
from xbp.models.text_classifier import TextClassifier
from xbp.models.vgg import CHANNELS, VGG
from xbp.nn import Layer

ACTIVATIONS = {
    layer.__name__: layer
    for layer in (nn.ReLU, nn.LeakyReLU, nn.Sigmoid, nn.Tanh, nn.Softmax, nn.ELU, nn.GELU, nn.SiLU)
}
MODELS: dict[str, Any] = {
    "FastCIFAR": FastCIFAR,
    "GPT": GPT,
    "LeNet5": LeNet5,
    "MLP": MLP,
    "ResNet": ResNet,
    "TextClassifier": TextClassifier,
    "VGG": VGG,
}


REGISTERED: dict[str, type[Layer]] = {}
"""Classes of users, by name; see `register`."""

Class = TypeVar("Class", bound=type[Layer])


def register(model_class: Class) -> Class:
    """A decorator that lets files name a user's class.

    Parameters
    ----------
    model_class : subclass of Layer
        Its objects have an attribute `arguments`, a dict of JSON values by which
        ``model_class(**arguments)`` makes a model of the same shapes.

    Returns
    -------
    model_class

    Raises
    ------
    InputError
        It is no such class, or one of xbp's models has the same name.

    Examples
    --------
    >>> from xbp import models, nn
    >>> @models.register
    ... class Doubled(nn.Sequential):
    ...     def __init__(self, features):
    ...         self.arguments = {"features": features}
    ...         super().__init__(nn.Linear(features, features), nn.Linear(features, 1))
    """
    if not isinstance(model_class, type) or not issubclass(model_class, Layer):
        msg = f"register takes a subclass of nn.Layer, got {described(model_class)}"
        raise InputError(msg)
    if model_class.__name__ in MODELS:
        msg = f"{model_class.__name__} is the name of one of xbp's models; choose another"
        raise InputError(msg)
    REGISTERED[model_class.__name__] = model_class
    return model_class


def recipe_of(model: Layer) -> dict[str, Any] | None:
    """``{"model": name, "arguments": …}`` as JSON values; None for a user's own model."""
    name = type(model).__name__
    if REGISTERED.get(name) is type(model):
        return {"model": name, "arguments": _own_arguments(model)}
    if MODELS.get(name) is not type(model):
        return None
    arguments = dict(model.arguments)  # type: ignore[attr-defined]
    if isinstance(model, MLP):
        hidden = [_name(activation) for activation in arguments["activation"]]
        output = arguments["output_activation"]
        if None in hidden or (output is not None and _name(output) is None):
            return None
        arguments |= {"activation": hidden, "output_activation": output and _name(output)}
    return {"model": type(model).__name__, "arguments": arguments}


def rebuild(recipe: Any, shapes: Mapping[str, tuple[int, ...]], file: str) -> Layer:
    """The model described by `recipe_of`, with new weights in float32.

    Parameters
    ----------
    recipe : object
        Read from a file, so possibly anything.
    shapes
        Of the weights in the file.
    file : str
        The name of the file, for messages.

    Raises
    ------
    DataError
        It describes no model of the table, or one larger than the weights.
    """
    if not isinstance(recipe, dict) or not isinstance(recipe.get("arguments"), dict):
        msg = (
            f"{file} does not say which model of xbp it belongs to; make the model yourself and "
            "give it the result of xbp.training.load_weights"
        )
        raise DataError(msg)
    name, arguments = recipe.get("model"), dict(recipe["arguments"])
    if name not in (*MODELS, *REGISTERED):
        known = ", ".join((*MODELS, *REGISTERED))
        _refuse(file, f"it is a {name!r}, not one of {known}; register its class")
    stored = sum(math.prod(shape) for shape in shapes.values())
    try:
        if name in REGISTERED:
            return REGISTERED[name](**arguments)
        if LEAST[name](arguments) > stored:
            _refuse(file, "it has more weights than the file")
        sizes = arguments.pop("sizes") if name == "MLP" else ()
        if name == "MLP":
            output, hidden = arguments["output_activation"], arguments["activation"]
            arguments["output_activation"] = None if output is None else ACTIVATIONS[output]
            arguments["activation"] = [ACTIVATIONS[each] for each in hidden]
        model: Layer = MODELS[name](*sizes, **arguments, rng=0)
        return model
    except DataError:
        raise
    except (InputError, TypeError, LookupError) as error:
        _refuse(file, f"{type(error).__name__}: {error}")


def _own_arguments(model: Layer) -> dict[str, Any]:
    """The arguments of a model of a registered class.

    Raises
    ------
    InputError
    """
    arguments = getattr(model, "arguments", None)
    try:
        if isinstance(arguments, dict) and json.loads(json.dumps(arguments)) == arguments:
            return arguments
    except (TypeError, ValueError):
        pass
    msg = (
        f"{type(model).__name__} is registered, so that it needs an attribute `arguments`, a dict "
        f"of JSON values that its constructor takes; got {described(arguments)}"
    )
    raise InputError(msg)


# --- how many weights a model has at least, which is asked before it is made ---


def _sizes(arguments: Mapping[str, Any], *names: str) -> list[int]:
    return [integer(name, arguments.get(name), least=1) for name in names]


def _gpt(arguments: Mapping[str, Any]) -> int:
    vocabulary, context, layers, width = _sizes(
        arguments, "vocabulary", "context", "layers", "width"
    )
    return (vocabulary + context + 12 * layers * width) * width


def _mlp(arguments: Mapping[str, Any]) -> int:
    sizes = [integer("a size", size, least=1) for size in arguments["sizes"]]
    return sum(rows * columns for rows, columns in pairwise(sizes))


def _resnet(arguments: Mapping[str, Any]) -> int:
    depth, classes, channels = _sizes(arguments, "depth", "num_classes", "channels")
    stages = max(1, depth // 3 - 1) * 9 * sum(width**2 for width in WIDTHS)
    return stages // 2 + WIDTHS[0] * channels + WIDTHS[-1] * classes


def _text_classifier(arguments: Mapping[str, Any]) -> int:
    names = ("vocabulary", "num_classes", "width", "hidden", "layers")
    vocabulary, classes, width, hidden, layers = _sizes(arguments, *names)
    return vocabulary * width + 4 * hidden * (width + layers * hidden) + classes * hidden


def _vgg(arguments: Mapping[str, Any]) -> int:
    width, classes, channels = _sizes(arguments, "width", "num_classes", "channels")
    stages = sum(9 * before * after for before, after in pairwise(CHANNELS))
    return (stages * width + 9 * channels + CHANNELS[-1] * classes) * width


def _fast_cifar(arguments: Mapping[str, Any]) -> int:
    first, second, third = (
        integer("each of widths", width, least=1) for width in arguments["widths"]
    )
    (classes,) = _sizes(arguments, "num_classes")
    return 9 * (first**2 + first * second + second * third + third**2) + classes * third


LEAST: dict[str, Callable[[Mapping[str, Any]], int]] = {
    "FastCIFAR": _fast_cifar,
    "GPT": _gpt,
    "LeNet5": lambda arguments: 84 * _sizes(arguments, "num_classes")[0],
    "MLP": _mlp,
    "ResNet": _resnet,
    "TextClassifier": _text_classifier,
    "VGG": _vgg,
}


def _refuse(file: str, why: str) -> NoReturn:
    msg = f"{file} describes a model that cannot be made ({on_one_line(why)}); write the file again"
    raise DataError(msg)


def _name(activation: Any) -> str | None:
    name = getattr(activation, "__name__", "")
    return name if ACTIVATIONS.get(name) is activation else None
