"""Metrics: accuracy, precision, recall, F1, confusion matrices, and a user's own functions."""

from xbp.training.metrics.accuracy import Accuracy, TopKAccuracy, accuracy, binary_accuracy
from xbp.training.metrics.confusion import ConfusionMatrix
from xbp.training.metrics.counting import Metric, len_of
from xbp.training.metrics.names import METRICS, MetricLike, find_metrics
from xbp.training.metrics.scores import F1Score, Precision, Recall

__all__ = [
    "METRICS",
    "Accuracy",
    "ConfusionMatrix",
    "F1Score",
    "Metric",
    "MetricLike",
    "Precision",
    "Recall",
    "TopKAccuracy",
    "accuracy",
    "binary_accuracy",
    "find_metrics",
    "len_of",
]
