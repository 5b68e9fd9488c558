"""Training: the loop, what it records, what it calls, and the files it leaves."""

from xbp.training.callbacks import Callback, Convergence, EarlyStopping
from xbp.training.history import History
from xbp.training.metrics import accuracy, binary_accuracy
from xbp.training.progress import ProgressBar
from xbp.training.trainer import Trainer
from xbp.training.weights import load_weights, save_weights

__all__ = [
    "Callback",
    "Convergence",
    "EarlyStopping",
    "History",
    "ProgressBar",
    "Trainer",
    "accuracy",
    "binary_accuracy",
    "load_weights",
    "save_weights",
]
