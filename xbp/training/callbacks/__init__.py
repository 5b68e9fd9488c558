"""What a `Trainer` calls between its steps and epochs."""

from xbp.training.callbacks.averaging import ExponentialMovingAverage
from xbp.training.callbacks.base import Callback, LambdaCallback, Training
from xbp.training.callbacks.checkpoints import Checkpoints
from xbp.training.callbacks.live import LiveCurve
from xbp.training.callbacks.model_checkpoint import ModelCheckpoint
from xbp.training.callbacks.progress import ProgressBar
from xbp.training.callbacks.rates import LearningRateScheduler, ReduceLROnPlateau
from xbp.training.callbacks.stopping import Convergence, EarlyStopping, TerminateOnNaN
from xbp.training.callbacks.trackers import CSVLogger, MLflow, TensorBoard

__all__ = [
    "CSVLogger",
    "Callback",
    "Checkpoints",
    "Convergence",
    "EarlyStopping",
    "ExponentialMovingAverage",
    "LambdaCallback",
    "LearningRateScheduler",
    "LiveCurve",
    "MLflow",
    "ModelCheckpoint",
    "ProgressBar",
    "ReduceLROnPlateau",
    "TensorBoard",
    "TerminateOnNaN",
    "Training",
]
