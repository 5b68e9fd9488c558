"""What a name of PyTorch or Keras is called here: advice for those that layers do not have."""

from __future__ import annotations

import sys
from typing import NoReturn

_PHASES = "forward(x, training=True) trains, and model(x) is inference"
_FIT = "xbp.Trainer(model, loss, optimizer) has fit, evaluate and predict"
_DEVICES = 'model.to("cupy") moves it to a GPU, model.to("numpy") back'
_DTYPES = 'model.astype("float64") converts its parameters'
_LONGER = "nn.Sequential(*model, layer) is a longer one, with the same layers"

OF_LAYERS = {
    **dict.fromkeys(("train", "eval"), _PHASES),
    **dict.fromkeys(("fit", "compile", "evaluate", "predict", "train_on_batch"), _FIT),
    **dict.fromkeys(("cuda", "cpu"), _DEVICES),
    **dict.fromkeys(("float", "double", "half", "bfloat16"), _DTYPES),
    "backward": "forward returns it: y, backward = model.forward(x, training=True)",
    "zero_grad": "the optimizer has it: optimizer.zero_grad()",
    "requires_grad_": "parameter.trainable = False freezes a parameter",
    "summary": "nn.summary(model, (1, 28, 28)) lists the layers",
    **dict.fromkeys(("append", "extend", "insert", "add"), _LONGER),
    "register_buffer": "self.name = nn.Buffer(array) makes a buffer",
    "register_parameter": "self.name = nn.Parameter(array) makes a parameter",
    "add_module": "a layer as an attribute, or in a list or dict, is a part of the model",
    **dict.fromkeys(("modules", "named_modules"), "model.tree() has all layers"),
    "named_children": "model.children() has names and layers",
    "save": "xbp.training.save_weights(model.state_dict(), file) writes the weights",
    "save_weights": "xbp.training.save_weights(model.state_dict(), file) writes them",
    "load_weights": "model.load_state_dict(xbp.training.load_weights(file)) reads them",
    "get_weights": "model.state_dict() has them by name",
    "set_weights": "model.load_state_dict(state) sets them by name",
}

OF_NN = {
    "Module": "it is nn.Layer, whose forward returns output and backward",
    "Dense": "it is nn.Linear(in_features, out_features)",
    **dict.fromkeys(("ModuleList", "ModuleDict"), "it is a list or dict of layers as an attribute"),
    "functional": "it is a layer, called at once: nn.ReLU()(x)",
    "init": "it is xbp.initializers, for the argument weight_init of layers",
    "Model": "it is nn.Sequential, or an nn.Composite",
    "TransformerEncoderLayer": "it is nn.TransformerBlock",
    **dict.fromkeys(("InstanceNorm1d", "InstanceNorm2d"), "it is nn.GroupNorm(channels, channels)"),
}

OF_OPTIM = {
    "lr_scheduler": "it is the rate itself: optim.SGD(parameters, lr=optim.StepLR(0.1, 30))",
}


def missing_from_layer(layer: object, name: str) -> NoReturn:
    """An AttributeError, with what to write in place of a name of another library."""
    msg = f"{type(layer).__name__!r} object has no attribute {name!r}{_advice(name, OF_LAYERS)}"
    raise AttributeError(msg, name=name, obj=layer)


def missing_from_nn(name: str) -> NoReturn:
    """The same for the module `xbp.nn`."""
    _missing_from("xbp.nn", name, OF_NN)


def missing_from_optim(name: str) -> NoReturn:
    """The same for the module `xbp.optim`."""
    _missing_from("xbp.optim", name, OF_OPTIM)


def _missing_from(module: str, name: str, known: dict[str, str]) -> NoReturn:
    msg = f"module {module!r} has no attribute {name!r}{_advice(name, known)}"
    raise AttributeError(msg, name=name, obj=sys.modules[module])


def _advice(name: str, known: dict[str, str]) -> str:
    return f"; in xbp {known[name]}" if name in known else ""
