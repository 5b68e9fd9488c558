"""What a model consists of: its layers, the shapes of their outputs, their parameters."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from xbp.arguments import integer
from xbp.backend import get_backend
from xbp.errors import InputError
from xbp.nested import tree_map
from xbp.nn.layer import Layer
from xbp.nn.sequential import named_outputs


class LayerSummary(NamedTuple):
    """One layer of a `summary`.

    Attributes
    ----------
    name : str
        As in the keys of state dicts: ``"0"``, ``"3.1"``; empty for a model that is one layer.
    kind : str
        The name of its class.
    output_shape : tuple of int
        Of one sample, so without the batch axis; of a layer of several outputs, a tuple of such.
    parameters : int
        How many numbers are learned; those shared with an earlier layer are not counted again.
    """

    name: str
    kind: str
    output_shape: tuple[int, ...]
    parameters: int

    @property
    def sizes(self) -> str:
        """The output's shape as text: ``"16 × 5 × 5"``; of several outputs, ``"4 × 4, 2"``."""
        several = any(isinstance(size, tuple) for size in self.output_shape)
        shapes: Any = self.output_shape if several else (self.output_shape,)
        return ", ".join(" × ".join(map(str, shape)) for shape in shapes)


def summary(model: Layer, input_shape: tuple[int, ...]) -> list[LayerSummary]:
    """Run one sample of zeros through `model`, and say what each layer makes of it.

    Layers inside a Sequential come one by one, any other layer as a whole.

    Parameters
    ----------
    model : Layer
        On any backend, of any dtype.
    input_shape : tuple of int
        Of one sample: ``(1, 28, 28)`` for a grey image.

    Returns
    -------
    list of LayerSummary
        In the order in which they run.

    Raises
    ------
    InputError
        `input_shape` is no tuple of positive ints, or a layer refuses its input.

    Examples
    --------
    >>> from xbp import nn
    >>> model = nn.Sequential(nn.Conv2d(1, 4, 3, rng=0), nn.Flatten(), nn.Linear(144, 2, rng=0))
    >>> for row in summary(model, (1, 8, 8)):
    ...     print(*row)
    0 Conv2d (4, 6, 6) 40
    1 Flatten (144,) 0
    2 Linear (2,) 290
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
    x = backend.xp.broadcast_to(backend.asarray(0.0, dtype=dtype), (1, *shape))
    rows, counted = [], set()
    for name, layer, y in named_outputs(model, x):
        new = [p for p in layer.parameters() if id(p) not in counted]
        counted |= {id(p) for p in new}
        parameters = sum(math.prod(p.shape) for p in new)
        shape = tree_map(lambda part: tuple(part.shape[1:]), y)
        rows.append(LayerSummary(name, type(layer).__name__, shape, parameters))
    return rows
