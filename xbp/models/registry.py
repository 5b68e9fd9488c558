"""The models and arguments that a file may name.

A file is data: its model is looked up by name in this table, never imported, and the model takes
no more memory than the weights in the file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, NoReturn

from xbp import nn
from xbp.arguments import integer
from xbp.errors import DataError, InputError, on_one_line
from xbp.models.gpt import GPT
from xbp.models.lenet import LeNet5
from xbp.models.mlp import MLP
from xbp.nn import Layer

ACTIVATIONS = {
    layer.__name__: layer
    for layer in (nn.ReLU, nn.LeakyReLU, nn.Sigmoid, nn.Tanh, nn.Softmax, nn.ELU, nn.GELU, nn.SiLU)
}
MODELS = {"GPT": GPT, "LeNet5": LeNet5, "MLP": MLP}
GPT_SIZES = ("vocabulary", "context", "layers", "heads", "width")


def recipe_of(model: Layer) -> dict[str, Any] | None:
    """``{"model": name, "arguments": …}`` as JSON values; None for a user's own model."""
    if MODELS.get(type(model).__name__) is not type(model):
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
    if recipe.get("model") not in tuple(MODELS):
        _refuse(file, f"it is a {recipe.get('model')!r}, not one of {', '.join(MODELS)}")
    arguments = dict(recipe["arguments"])
    stored = sum(math.prod(shape) for shape in shapes.values())
    try:
        if recipe["model"] == "LeNet5":
            if integer("num_classes", arguments.get("num_classes"), least=1) > stored:
                _refuse(file, "it has more classes than the file has weights")
            return LeNet5(**arguments, rng=0)
        if recipe["model"] == "GPT":
            sizes = [integer(name, arguments.get(name), least=1) for name in GPT_SIZES]
            vocabulary, context, layers, _, width = sizes
            if (vocabulary + context + 12 * layers * width) * width > stored:
                _refuse(file, "it has more weights than the file")
            return GPT(**arguments, rng=0)
        sizes = [integer("a size", size, least=1) for size in arguments.pop("sizes")]
        if sum(rows * columns for rows, columns in pairwise(sizes)) > stored:
            _refuse(file, "it has more weights than the file")
        output = arguments.pop("output_activation")
        hidden = [ACTIVATIONS[name] for name in arguments.pop("activation")]
        return MLP(
            *sizes,
            activation=hidden,
            output_activation=None if output is None else ACTIVATIONS[output],
            **arguments,
            rng=0,
        )
    except DataError:
        raise
    except (InputError, TypeError, LookupError) as error:
        _refuse(file, f"{type(error).__name__}: {error}")


def _refuse(file: str, why: str) -> NoReturn:
    msg = f"{file} describes a model that cannot be made ({on_one_line(why)}); write the file again"
    raise DataError(msg)


def _name(activation: Any) -> str | None:
    name = getattr(activation, "__name__", "")
    return name if ACTIVATIONS.get(name) is activation else None
