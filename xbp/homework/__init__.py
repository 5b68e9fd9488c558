"""Homework that checks itself: layers, losses and optimizers that students write.

``xbp homework new DIR`` writes the files to begin with, ``xbp homework check FILE`` says what is
right, and of what is wrong where the derivation went astray.
"""

from xbp.homework.apart import check_apart
from xbp.homework.checking import Answer, check, check_file
from xbp.homework.exercise import Exercise
from xbp.homework.hints import KINDS, Hint, Truth, diagnose
from xbp.homework.reports import as_json, as_junit, as_text
from xbp.homework.table import EXERCISES

__all__ = [
    "EXERCISES",
    "KINDS",
    "Answer",
    "Exercise",
    "Hint",
    "Truth",
    "as_json",
    "as_junit",
    "as_text",
    "check",
    "check_apart",
    "check_file",
    "diagnose",
]
