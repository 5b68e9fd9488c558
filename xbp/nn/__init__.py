"""Layers and losses. Nothing in here knows which array library it runs on."""

from xbp.nn.activations import Elementwise, LeakyReLU, ReLU, Sigmoid, Softmax, Tanh
from xbp.nn.conv import Conv2d
from xbp.nn.dropout import Dropout
from xbp.nn.layer import Backward, Layer
from xbp.nn.linear import Linear
from xbp.nn.losses import CrossEntropyLoss, L1Loss, Loss, MSELoss, RegressionLoss
from xbp.nn.parameter import Parameter
from xbp.nn.pool import AvgPool2d, MaxPool2d
from xbp.nn.sequential import Sequential, trace
from xbp.nn.shape import Flatten

__all__ = [
    "AvgPool2d",
    "Backward",
    "Conv2d",
    "CrossEntropyLoss",
    "Dropout",
    "Elementwise",
    "Flatten",
    "L1Loss",
    "Layer",
    "LeakyReLU",
    "Linear",
    "Loss",
    "MSELoss",
    "MaxPool2d",
    "Parameter",
    "ReLU",
    "RegressionLoss",
    "Sequential",
    "Sigmoid",
    "Softmax",
    "Tanh",
    "trace",
]
