"""Training: the loop, what it records, what it calls, and the files it leaves."""

from xbp.training.callbacks import (
    Callback,
    LambdaCallback,
    LearningRateScheduler,
    TerminateOnNaN,
)
from xbp.training.checkpoints import Checkpoints
from xbp.training.history import History
from xbp.training.metrics import (
    METRICS,
    Accuracy,
    ConfusionMatrix,
    F1Score,
    Metric,
    Precision,
    Recall,
    TopKAccuracy,
    accuracy,
    binary_accuracy,
)
from xbp.training.model_checkpoint import ModelCheckpoint
from xbp.training.progress import ProgressBar
from xbp.training.stopping import Convergence, EarlyStopping
from xbp.training.trackers import CSVLogger, MLflow, TensorBoard
from xbp.training.trainer import Trainer
from xbp.training.weights import load_model, load_weights, save_weights

__all__ = [
    "METRICS",
    "Accuracy",
    "CSVLogger",
    "Callback",
    "Checkpoints",
    "ConfusionMatrix",
    "Convergence",
    "EarlyStopping",
    "F1Score",
    "History",
    "LambdaCallback",
    "LearningRateScheduler",
    "MLflow",
    "Metric",
    "ModelCheckpoint",
    "Precision",
    "ProgressBar",
    "Recall",
    "TensorBoard",
    "TerminateOnNaN",
    "TopKAccuracy",
    "Trainer",
    "accuracy",
    "binary_accuracy",
    "load_model",
    "load_weights",
    "save_weights",
]
