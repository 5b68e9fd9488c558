"""Warnings that point at the user's code."""

from __future__ import annotations

import sys
import warnings


def warn(msg: str) -> None:
    """Warn at the line outside xbp that led here."""
    level, frame = 1, sys._getframe()
    while frame.f_back and str(frame.f_globals.get("__name__")).startswith("xbp."):
        level, frame = level + 1, frame.f_back
    warnings.warn(msg, UserWarning, stacklevel=level)
