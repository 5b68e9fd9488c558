"""A gated linear layer and the quantile loss, for xbp."""

from gated.layer import GatedLinear
from gated.loss import QuantileLoss

__all__ = ["GatedLinear", "QuantileLoss"]
