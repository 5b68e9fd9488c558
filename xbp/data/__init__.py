"""How data are given to training: sources larger than memory, splits, augmentation."""

from xbp.data.ahead import Ahead
from xbp.data.files import Files
from xbp.data.sources import Arrays, Function, Source, Subset, Windows

__all__ = ["Ahead", "Arrays", "Files", "Function", "Source", "Subset", "Windows"]
