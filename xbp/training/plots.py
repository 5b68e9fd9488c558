"""Figures of a training: learning curves and a confusion matrix, by matplotlib.

Each function returns a new `matplotlib.figure.Figure`, made without pyplot: no window, no global
state, and nothing to close. ``figure.savefig("curves.png")`` writes it. matplotlib comes with the
``plot`` extra, and is imported only when a function is called.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from xbp.training.history import History

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TRAINING, VALIDATION, CORRECT = "#1f77b4", "#d95f02", "#e4e8ec"
MOST_NUMBERED_CLASSES = 30
"""With more classes, counts in the cells would be illegible."""


def plot_learning_curves(history: History, *, validation: str = "validation") -> Figure:
    """Loss and accuracy over the epochs, without a panel for the accuracy if there is none.

    Parameters
    ----------
    history : History
        With at least one epoch.
    validation : str, default "validation"
        The name of the validation data in the legend.
    """
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    panels = [name for name in ("loss", "accuracy") if name in history.names()]
    figure = _figure(4.6 * len(panels), 3.6)
    for index, name in enumerate(panels, start=1):
        axes = figure.add_subplot(1, len(panels), index)
        curves = ((name, "training", TRAINING), (f"val_{name}", validation, VALIDATION))
        for key, label, colour in curves:
            # An interrupted epoch has no validation.
            points = [(r["epoch"], r[key]) for r in history.records if key in r]
            if points:
                axes.plot(*zip(*points, strict=True), "o-", color=colour, label=label, markersize=4)
        axes.set_xlabel("epoch")
        axes.set_ylabel(name)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        if name == "accuracy":
            axes.yaxis.set_major_formatter(PercentFormatter(xmax=1))
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, loc="upper right" if name == "loss" else "lower right")
    return figure


def plot_confusion_matrix(matrix: NDArray[np.int64]) -> Figure:
    """The counts of a `confusion_matrix`, with mistakes coloured by their number.

    The diagonal is left out of the colour scale, as its much larger counts would hide differences
    between mistakes.

    Parameters
    ----------
    matrix : numpy.ndarray
        Integers (C, C), row = true class, column = predicted class.
    """
    from matplotlib.colors import ListedColormap
    from matplotlib.ticker import MaxNLocator

    classes = len(matrix)
    numbered = classes <= MOST_NUMBERED_CLASSES
    size = max(4.5, 0.52 * classes) if numbered else 9.0
    figure = _figure(size + 1.1, size)
    axes = figure.add_subplot()
    diagonal = np.eye(classes, dtype=bool)
    largest = int(matrix[~diagonal].max(initial=1))
    mistakes = np.ma.masked_array(matrix, diagonal)
    image = axes.imshow(mistakes, cmap="Oranges", vmin=0, vmax=largest)
    axes.imshow(np.ma.masked_array(matrix, ~diagonal), cmap=ListedColormap([CORRECT]))
    if numbered:
        for row, column in np.argwhere(matrix > 0):
            count = matrix[row, column]
            dark = row != column and count > 0.6 * largest
            style: dict[str, Any] = {"color": "white" if dark else "black", "fontsize": 8}
            axes.text(column, row, f"{count}", ha="center", va="center", **style)
        axes.set_xticks(range(classes))
        axes.set_yticks(range(classes))
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    total = matrix.sum()
    axes.set_title(f"{total - matrix.trace():,} of {total:,} wrong", fontsize=10)
    ticks = MaxNLocator(integer=True, min_n_ticks=1)
    figure.colorbar(image, ax=axes, label="images taken for another class", ticks=ticks)
    return figure


def _figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)  # becomes the figure's canvas: PNG, whatever the user's default
    return figure
