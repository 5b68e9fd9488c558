"""LeNet-5 as published in 1998: its layers, its loss, and the network."""

from xbp.models.lenet1998.negation import Negation
from xbp.models.lenet1998.network import CODES, CONNECTIONS, layers
from xbp.models.lenet1998.partial_conv import PartialConv2d
from xbp.models.lenet1998.rbf import EuclideanRBF
from xbp.models.lenet1998.rejecting import RejectingCrossEntropyLoss
from xbp.models.lenet1998.subsample import Subsample2d

__all__ = [
    "CODES",
    "CONNECTIONS",
    "EuclideanRBF",
    "Negation",
    "PartialConv2d",
    "RejectingCrossEntropyLoss",
    "Subsample2d",
    "layers",
]
