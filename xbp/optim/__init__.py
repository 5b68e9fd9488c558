"""Optimizers and learning-rate schedules, independent of the array library."""

from typing import TYPE_CHECKING

from xbp.optim.adagrad import Adadelta, Adagrad, RMSprop
from xbp.optim.adam import Adam, Adamax, AdamW, NAdam, RAdam
from xbp.optim.clip import clip_grad_norm, clip_grad_value
from xbp.optim.groups import Group, decay_groups
from xbp.optim.lamb import LAMB
from xbp.optim.lion import Lion
from xbp.optim.muon import Muon, muon_groups
from xbp.optim.optimizer import Optimizer
from xbp.optim.schedules import (
    ChainedLR,
    ConstantLR,
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    ExponentialLR,
    LinearLR,
    OneCycleLR,
    PolynomialLR,
    Schedule,
    SequentialLR,
    StepLR,
    warmup,
)
from xbp.optim.sgd import SGD

__all__ = [
    "warmup",
    "SequentialLR",
    "PolynomialLR",
    "LinearLR",
    "ExponentialLR",
    "CosineAnnealingWarmRestarts",
    "ChainedLR",
    "LAMB",
    "SGD",
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "ConstantLR",
    "CosineAnnealingLR",
    "Group",
    "Lion",
    "Muon",
    "NAdam",
    "OneCycleLR",
    "Optimizer",
    "RAdam",
    "RMSprop",
    "Schedule",
    "StepLR",
    "clip_grad_norm",
    "clip_grad_value",
    "decay_groups",
    "muon_groups",
]

if not TYPE_CHECKING:  # a type checker shall see the names above alone
    from xbp.nn.elsewhere import missing_from_optim as __getattr__  # noqa: F401
