"""The table of cases: for everything public that computes, its arguments, inputs and oracle.

There is one line for each layer (layers.py), loss (losses.py), optimizer, initializer and
primitive. Tests of oracles and gradients, `xbp parity`, properties, captured epochs, foreign arrays
and the list of ONNX exports all read it.
"""

from xbp import nn, optim
from xbp.testing.cases.case import Call, Case, Layer, Line, Model, fed
from xbp.testing.cases.differentiable import DIFFERENTIABLE
from xbp.testing.cases.initializers import INITIALIZERS, Initializer
from xbp.testing.cases.layers import LAYERS
from xbp.testing.cases.losses import LOSSES, Loss
from xbp.testing.cases.models import MODELS
from xbp.testing.cases.optimizers import OPTIMIZERS, Optimizer, Rule
from xbp.testing.cases.primitives import PRIMITIVES

BASES = {
    *(nn.Layer, nn.OperationLayer, nn.Elementwise, nn.Loss, nn.EntrywiseLoss, nn.RegressionLoss),
    *(nn.ClassLoss, nn.EmbeddingLoss),
    optim.Optimizer,
}
"""Public classes that one derives from, and that compute nothing alone: they have no line."""

CASES = [case for line in (*LAYERS, *MODELS, *LOSSES) for case in line.cases()]
"""The lines with a backward: layers, networks and losses."""

RULES = [rule for line in OPTIMIZERS if line.oracle for rule in line.rules()]
"""All optimizers, with options that their oracles know."""

__all__ = [
    "BASES",
    "CASES",
    "Call",
    "Case",
    "DIFFERENTIABLE",
    "INITIALIZERS",
    "Initializer",
    "LAYERS",
    "LOSSES",
    "Layer",
    "Line",
    "Loss",
    "MODELS",
    "Model",
    "OPTIMIZERS",
    "Optimizer",
    "PRIMITIVES",
    "RULES",
    "Rule",
    "fed",
]
