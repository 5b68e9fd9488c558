"""Optimizers and learning-rate schedules. Nothing in here knows which array library it runs on."""

from xbp.optim.adagrad import Adadelta, Adagrad, RMSprop
from xbp.optim.adam import Adam, Adamax, AdamW, NAdam, RAdam
from xbp.optim.clip import clip_grad_norm
from xbp.optim.optimizer import Optimizer
from xbp.optim.schedules import ConstantLR, CosineAnnealingLR, OneCycleLR, Schedule, StepLR
from xbp.optim.sgd import SGD

__all__ = [
    "SGD",
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "ConstantLR",
    "CosineAnnealingLR",
    "NAdam",
    "OneCycleLR",
    "Optimizer",
    "RAdam",
    "RMSprop",
    "Schedule",
    "StepLR",
    "clip_grad_norm",
]
