"""Figures embedded in a page: curves as SVG, arrays as PNG.

They are readable on light and dark pages: an SVG uses the page's colour variables, and in a PNG
zero is transparent.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# matplotlib does not accept CSS variables: each is represented by a unique colour.
VARIABLES = {"#010101": "--ink", "#020202": "--rule", "#030303": "--first", "#040404": "--second"}
INK, RULE, FIRST, SECOND = VARIABLES
# Orange and blue can be distinguished with any colour vision, on white and on near-black.
POSITIVE, NEGATIVE = (217, 95, 2), (45, 125, 210)


class Curve(NamedTuple):
    """A line of a `curves` figure."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    colour: str = FIRST
    marked: bool = True  # whether to mark each point; otherwise a thin line


def curves(
    name: str, title: str, lines: list[Curve], *, scale: str = "linear", axis: str = "epoch"
) -> str:
    """An SVG element: curves over the epochs.

    Parameters
    ----------
    name : str
        The id of this figure, unique on the page.
    title : str
        A description for screen readers.
    lines : list of Curve
    scale : {"linear", "log", "percent"}, default "linear"
        The vertical axis.
    axis : str, default "epoch"
        What the horizontal axis counts.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    style: dict[str, Any] = {
        "svg.fonttype": "none",  # keep text as text
        "svg.hashsalt": name,  # reproducible bytes
        "font.family": "sans-serif",
        "font.size": 10,
        "axes.edgecolor": RULE,
        "grid.color": RULE,
        **dict.fromkeys(("axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor"), INK),
        **dict.fromkeys(("xtick.color", "ytick.color"), RULE),
        "text.color": INK,
    }
    with mpl.rc_context(style):  # type: ignore[arg-type]
        figure = Figure(figsize=(4.5, 3.0), layout="constrained")
        FigureCanvasSVG(figure)
        figure.patch.set_visible(False)
        axes = figure.add_subplot()
        axes.patch.set_visible(False)
        for line in lines:
            look = {"marker": "o", "markersize": 4} if line.marked else {"linewidth": 1}
            axes.plot(line.x, line.y, color=line.colour, label=line.label, **look)
        _axes(axes, scale, axis)
        if len(lines) > 1:
            axes.legend(frameon=False, loc="best", handlelength=1.5)
        file = io.StringIO()
        # With every entry None, matplotlib writes neither metadata nor a date.
        metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(file, format="svg", metadata=metadata, transparent=True)
    return _inline(file.getvalue(), name, title)


def _axes(axes: Axes, scale: str, label: str) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    axes.set_xlabel(label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(axis="y", linewidth=0.6)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    if scale == "log":
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=20))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.tick_params(axis="y", which="minor", length=0)
    if scale == "percent":
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{100 * y:g} %"))
    else:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))


def _inline(svg: str, name: str, title: str) -> str:
    """An SVG file as an element of a page, with the page's colours and width, and unique ids."""
    svg = svg[svg.index("<svg") :]
    view = re.search(r'viewBox="[^"]*"', svg)
    head = f'<svg {view[0] if view else ""} role="img" aria-label="{title}">'
    svg = head + svg[svg.index(">") + 1 :]
    svg = re.sub(r' id="', f' id="{name}-', svg)
    svg = re.sub(r'(?:xlink:)?href="#', f'href="#{name}-', svg)
    svg = svg.replace("url(#", f"url(#{name}-")
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    return svg


# --- arrays --------------------------------------------------------------------------------------


def signed(values: NDArray[Any], largest: float | None = None) -> str:
    """A matrix as a picture: orange above zero, blue below, with opacity by magnitude.

    Three matrices are a picture in their colours, red, green and blue, with grey for zero.

    Parameters
    ----------
    values : numpy.ndarray (H, W) or (3, H, W)
    largest : float, optional
        The magnitude of full opacity; by default the largest one.
    """
    largest = np.abs(values).max(initial=0) if largest is None else largest
    if values.ndim == 3:
        shares = np.clip(values / (largest or 1), -1, 1)
        return photograph(np.rint(127.5 * (1 + shares)).astype(np.uint8))
    pixels = np.zeros((*values.shape, 4), np.uint8)
    pixels[..., :3] = np.where((values > 0)[..., None], POSITIVE, NEGATIVE)
    pixels[..., 3] = np.rint(255 * np.minimum(np.abs(values) / (largest or 1), 1))
    pixels[pixels[..., 3] == 0] = 0  # compresses better
    return _png(pixels, "RGBA")


def ink(image: NDArray[np.uint8]) -> str:
    """A picture of black ink, 0 to 255, on transparent ground; a dark page inverts it."""
    return _png(np.stack([np.zeros_like(image), image], axis=-1), "LA")


def photograph(image: NDArray[np.uint8]) -> str:
    """A picture in colours, (3, H, W)."""
    return _png(np.ascontiguousarray(image.transpose(1, 2, 0)), "RGB")


def _png(pixels: NDArray[np.uint8], mode: str) -> str:
    from PIL import Image

    file, (height, width) = io.BytesIO(), pixels.shape[:2]
    Image.frombytes(mode, (width, height), pixels.tobytes()).save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")
