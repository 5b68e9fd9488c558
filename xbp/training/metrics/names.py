"""The metrics of a `Trainer`: given by name, as a `Metric`, or as a function."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

from xbp.arguments import described, takes
from xbp.backend import Array
from xbp.errors import InputError
from xbp.nn.losses import Loss
from xbp.training.metrics.accuracy import Accuracy, TopKAccuracy
from xbp.training.metrics.averages import Mean
from xbp.training.metrics.counting import Metric
from xbp.training.metrics.scores import F1Score, Precision, Recall
from xbp.training.results import check_distinct

MetricLike: TypeAlias = "str | Metric | Callable[[Array, Array], Any]"
"""A name in `METRICS`, a `Metric`, or a function ``(prediction, target) -> number or 0-d array``
that gives the mean over a batch."""

METRICS: dict[str, Callable[[], Metric]] = {
    "accuracy": Accuracy,
    "top_5_accuracy": TopKAccuracy,
    "precision": Precision,
    "recall": Recall,
    "f1": F1Score,
}
"""Metrics by their names; the last three are means over the classes ("macro").

`binary_accuracy` is not among them: a name does not say whether outputs are logits.
"""


def find_metrics(metrics: Iterable[MetricLike] | None) -> dict[str, Metric]:
    """Metrics by the names they have in records; None stands for none.

    Raises
    ------
    InputError
        There is no such metric, two have the same name, they are not in a list, or a function takes
        other arguments.
    """
    if metrics is None:
        return {}
    if isinstance(metrics, str | Metric | type) or not isinstance(metrics, Iterable):
        msg = f"metrics must be a list of names, Metrics or functions, got {described(metrics)}"
        raise InputError(f"{msg}; put it into a list")
    found: dict[str, Metric] = {}
    for given in metrics:
        metric = _find(given)
        if not isinstance(getattr(metric, "name", None), str):
            msg = f"a metric needs a name; give {type(metric).__name__} an attribute name"
            raise InputError(msg)
        check_distinct(["epoch", "lr", "loss", *found, metric.name])
        found[metric.name] = metric
    return found


def _find(metric: Any) -> Metric:
    if isinstance(metric, Metric):
        return metric
    if isinstance(metric, type) and issubclass(metric, Metric):
        return metric()
    if callable(metric) and not isinstance(metric, type | Loss):
        takes("a metric", metric, "prediction", "target")
        return Mean(getattr(metric, "__name__", type(metric).__name__), metric)
    if isinstance(metric, str) and metric in METRICS:
        return METRICS[metric]()
    what = repr(metric) if isinstance(metric, str) else f"like {described(metric)}"
    msg = f"there is no metric {what}; give a function, a Metric or one of {', '.join(METRICS)}"
    raise InputError(msg)
