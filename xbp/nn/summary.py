"""A model's layers, the shapes of their outputs, and their numbers of parameters."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from xbp.arguments import integer
from xbp.backend import get_backend
from xbp.errors import InputError
from xbp.nested import tree_map
from xbp.nn.embedding import Embedding
from xbp.nn.layer import Layer
from xbp.nn.sequential import named_outputs


class LayerSummary(NamedTuple):
    """One layer of a `summary`.

    Attributes
    ----------
    name : str
        As in the keys of state dicts: ``"0"``, ``"3.1"``; empty for a model that is one layer.
    kind : str
        The name of the layer's class.
    output_shape : tuple of int
        Of one sample, without the batch axis; for several outputs, a tuple of shapes.
    parameters : int
        The number of learned numbers, without those shared with an earlier layer.
    """

    name: str
    kind: str
    output_shape: tuple[int, ...]
    parameters: int

    @property
    def sizes(self) -> str:
        """The output's shape as text: ``"16 × 5 × 5"``; for several outputs, ``"4 × 4, 2"``."""
        several = any(isinstance(size, tuple) for size in self.output_shape)
        shapes: Any = self.output_shape if several else (self.output_shape,)
        return ", ".join(" × ".join(map(str, shape)) for shape in shapes)


class Summary(list[LayerSummary]):
    """The rows of a `summary`, shown as a table with the sum of the parameters."""

    def __repr__(self) -> str:
        total = sum(row.parameters for row in self)
        rows = [(row.name, row.kind, row.sizes, f"{row.parameters:,}") for row in self]
        cells = [("", "layer", "output", "parameters"), *rows, ("", "", "", f"{total:,}")]
        widths = [max(1, *(len(row[column]) for row in cells)) for column in range(4)]
        line = "{{:{}}}  {{:{}}}  {{:{}}}  {{:>{}}}".format(*widths)
        return "\n".join(line.format(*row) for row in cells)

    def _repr_html_(self) -> str:
        from html import escape  # in a notebook alone

        rows = "".join(
            f"<tr><td>{escape(row.name)}</td><td>{escape(row.kind)}</td><td>{row.sizes}</td>"
            f"<td>{row.parameters:,}</td></tr>"
            for row in self
        )
        total = sum(row.parameters for row in self)
        return (
            "<table><thead><tr><th>layer</th><th></th><th>output</th><th>parameters</th></tr>"
            f"</thead><tbody>{rows}</tbody><tfoot><tr><td></td><td></td><td></td>"
            f"<td>{total:,}</td></tr></tfoot></table>"
        )


def summary(model: Layer, input_shape: tuple[int, ...]) -> Summary:
    """Run one sample of zeros through `model`, and list each layer with its output's shape.

    For a model with an `Embedding` they are tokens. Layers inside a Sequential are listed one by
    one, any other layer as a whole.

    Parameters
    ----------
    model : Layer
        On any backend, of any dtype.
    input_shape : tuple of int
        Of one sample: ``(1, 28, 28)`` for a grey image.

    Returns
    -------
    Summary
        A list of LayerSummary, in the order of the forward, shown as a table.

    Raises
    ------
    InputError
        `input_shape` is no tuple of positive ints, or a layer refuses its input.

    Examples
    --------
    >>> from xbp import nn
    >>> model = nn.Sequential(nn.Conv2d(1, 4, 3, rng=0), nn.Flatten(), nn.Linear(144, 2, rng=0))
    >>> summary(model, (1, 8, 8))
       layer    output     parameters
    0  Conv2d   4 × 6 × 6          40
    1  Flatten  144                 0
    2  Linear   2                 290
                                  330
    >>> sum(row.parameters for row in summary(model, (1, 8, 8)))
    330
    """
    try:
        shape = tuple(integer("each size in input_shape", size, least=1) for size in input_shape)
    except TypeError:
        msg = f"input_shape must be the shape of one sample, e.g. (1, 28, 28), got {input_shape!r}"
        raise InputError(msg) from None
    backend = model.backend() or get_backend()
    dtype = next(iter(model.dtypes()), "float32")
    if any(isinstance(layer, Embedding) for layer in model.tree()):
        dtype = "int64"
    x = backend.xp.broadcast_to(backend.asarray(0, dtype=dtype), (1, *shape))
    rows, counted = Summary(), set()
    for name, layer, y in named_outputs(model, x):
        new = [p for p in layer.parameters() if id(p) not in counted]
        counted |= {id(p) for p in new}
        parameters = sum(math.prod(p.shape) for p in new)
        shape = tree_map(lambda part: tuple(part.shape[1:]), y)
        rows.append(LayerSummary(name, type(layer).__name__, shape, parameters))
    return rows
