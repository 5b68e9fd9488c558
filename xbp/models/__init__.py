"""Ready-made networks."""

from xbp.models.lenet import LeNet5

__all__ = ["LeNet5"]
