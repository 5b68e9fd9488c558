"""Ready-made networks."""

from xbp.models.lenet import LeNet5
from xbp.models.mlp import MLP

__all__ = ["LeNet5", "MLP"]
