"""Optimizers and learning-rate schedules. Nothing in here knows which array library it runs on."""

from xbp.optim.adam import Adam
from xbp.optim.optimizer import Optimizer
from xbp.optim.schedules import ConstantLR, CosineAnnealingLR, OneCycleLR, Schedule, StepLR
from xbp.optim.sgd import SGD

__all__ = [
    "SGD",
    "Adam",
    "ConstantLR",
    "CosineAnnealingLR",
    "OneCycleLR",
    "Optimizer",
    "Schedule",
    "StepLR",
]
