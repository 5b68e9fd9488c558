"""Networks: what they are made of has lines in layers.py, so they need no oracle here."""

from __future__ import annotations

from xbp import models
from xbp.testing.cases.case import Model, fed
from xbp.testing.cases.sequences import LANGUAGE_MODELS

MODELS = [
    Model("LeNet5", None, [
        fed((3, 1, 28, 28)),
        fed((2, 1, 28, 28), activation="tanh", pool="average"),
        fed((2, 1, 28, 28), variant="1998"),
    ], room=models),
    Model("MLP", None, [fed((4, 7), 7, 12, 5, 3, dropout=0.25)], room=models),
    *LANGUAGE_MODELS,
]  # fmt: skip
