"""LeNet-5 as it was in 1998: its own layers, its loss, and the network made of them."""

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
