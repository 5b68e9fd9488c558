"""Training: the loop, what it records, what it calls, and the files it leaves."""

from xbp.training.callbacks import (
    Callback,
    Checkpoints,
    Convergence,
    CSVLogger,
    EarlyStopping,
    LambdaCallback,
    LearningRateScheduler,
    MLflow,
    ModelCheckpoint,
    ProgressBar,
    TensorBoard,
    TerminateOnNaN,
    Training,
)
from xbp.training.files.weights import load_model, load_weights, save_weights
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
from xbp.training.trainer import Trainer

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
    "Training",
    "accuracy",
    "binary_accuracy",
    "load_model",
    "load_weights",
    "save_weights",
]
