"""The table of networks. Their layers have oracles in layers.py, so most need none here."""

from __future__ import annotations

from xbp import models
from xbp.testing.cases.case import Model, fed, within
from xbp.testing.cases.sequences import LANGUAGE_MODELS

MODELS = [
    Model("LeNet5", None, [
        fed((3, 1, 28, 28)),
        fed((2, 1, 28, 28), activation="tanh", pool="average"),
        fed((2, 1, 28, 28), variant="1998"),
    ], room=models),
    Model("MLP", None, [fed((4, 7), 7, 12, 5, 3, dropout=0.25)], room=models),
    Model("ResNet", None, [
        fed((2, 3, 32, 32), 8, 4),
        fed((2, 1, 32, 32), 8, channels=1, shortcut="B"),
    ], room=models, kinks=within),
    Model("VGG", None, [fed((2, 3, 32, 32), 11, 4, width=2)], room=models, kinks=within),
    Model("FastCIFAR", None, [fed((2, 3, 32, 32), 4, widths=[4, 3, 5])], room=models, kinks=within),
    *LANGUAGE_MODELS,
]  # fmt: skip
