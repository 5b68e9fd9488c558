"""Data for training: sources larger than memory, splits, augmentation."""

from xbp.data.ahead import Ahead
from xbp.data.augment import (
    Augmentation,
    Brightness,
    Compose,
    Cutout,
    Flip,
    Mixup,
    ShiftedCrop,
)
from xbp.data.files import Files
from xbp.data.sources import Arrays, Function, Source, Subset, Windows
from xbp.data.splitting import random_split, train_test_split

__all__ = [
    "Ahead",
    "Arrays",
    "Augmentation",
    "Brightness",
    "Compose",
    "Cutout",
    "Files",
    "Flip",
    "Function",
    "Mixup",
    "ShiftedCrop",
    "Source",
    "Subset",
    "Windows",
    "random_split",
    "train_test_split",
]
