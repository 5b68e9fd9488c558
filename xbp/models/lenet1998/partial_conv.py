"""A convolution in which an output map is connected to some input maps only."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

from xbp.backend import Array, asarray
from xbp.errors import InputError
from xbp.initializers import Initializer, fan_in_uniform, map_by_map, zeros
from xbp.nn import Backward, Parameter
from xbp.nn.backward import Rng, TwoPartBackward
from xbp.nn.windowed import Size, Windowed
from xbp.primitives import convolve, matmul
from xbp.random import Seed, generator


class PartialConv2d(Windowed):
    """y[n, o] = b[o] + Σ_c W[o, c] ⋆ x[n, c], the sum over those c that o is connected to.

    With the kernels of the connections as rows of a matrix w, in the order of the table, and the
    constant P[oc, k] = 1 if k is the connection of o and c, else 0:

        W = P w,   ∂L/∂w = Pᵀ ∂L/∂W.

    So W is the weight of a `Conv2d`, with zeros for missing connections, but only the kernels w of
    existing connections are learned. (LeCun, Bottou, Bengio & Haffner 1998, table I: maps with
    different inputs extract different features.)

    Parameters
    ----------
    connections : table (out_channels, in_channels) of booleans
        ``connections[o][c]`` says whether output map o is connected to input map c.
    kernel_size, stride, padding, bias, dtype, rng
        As for `Conv2d`.
    weight_init : callable, default `fan_in_uniform`
        From `xbp.initializers`; called map by map, with the fan-in of each map's own inputs.
    bias_init : callable, default `zeros`

    Attributes
    ----------
    weight : Parameter (connections, kh, kw)
    bias : Parameter (out_channels,) or None
    placement : Parameter (out_channels · in_channels, connections)
        P, not trainable.

    Notes
    -----
    Input (N, in_channels, H, W), output (N, out_channels, OH, OW), as for `Conv2d`. The convolution
    is dense: missing connections save parameters, not time.

    Raises
    ------
    InputError
        The table is not rectangular, has entries that are no booleans, or an output map without an
        input; and as `Conv2d`.

    Examples
    --------
    >>> from xbp.models import lenet1998
    >>> table = [[True, False], [True, True]]
    >>> layer = lenet1998.PartialConv2d(table, kernel_size=5, rng=0)
    >>> layer.weight.shape, layer.bias.shape
    ((3, 5, 5), (2,))
    """

    def __init__(
        self,
        connections: Iterable[Iterable[bool]],
        kernel_size: Size,
        stride: Size = 1,
        padding: Size = 0,
        bias: bool = True,
        *,
        dtype: Any = "float32",
        rng: Seed = None,
        weight_init: Initializer = fan_in_uniform,
        bias_init: Initializer = zeros,
    ) -> None:
        super().__init__(kernel_size, stride, padding)
        table = _checked(connections)
        self.out_channels, self.in_channels = len(table), len(table[0])
        rng = generator(rng)
        inputs = [sum(row) for row in table]
        init = partial(map_by_map, inputs=inputs, init=weight_init)
        self.weight = Parameter.draw((sum(inputs), *self.kernel_size), init, rng, dtype)
        self.bias = Parameter.draw((len(table),), bias_init, rng, dtype) if bias else None
        flat = [linked for row in table for linked in row]
        columns = [place for place, linked in enumerate(flat) if linked]
        P = [[float(place == column) for column in columns] for place in range(len(flat))]
        self.placement = Parameter(asarray(P, dtype=dtype), trainable=False)

    def forward(
        self, x: Array, *, training: bool = False, rng: Rng = None
    ) -> tuple[Array, Backward]:
        xp = self.check_input(x)
        self.output_size(x.shape, self.in_channels)  # checks the shape
        P, bias = self.placement.data, self.bias
        w, add_grad = self.weight.lend()
        W = matmul(P, xp.reshape(w, (w.shape[0], -1)))
        kernels = xp.reshape(W, (self.out_channels, self.in_channels, *self.kernel_size))
        offsets = None if bias is None else bias.data
        _, stride, padding, _ = self.window()
        y, gradients = convolve(x, kernels, offsets, stride=stride, padding=padding)

        def add_weight_grad(dW: Array) -> None:
            dw = matmul(P.T, xp.reshape(dW, W.shape))
            add_grad(xp.reshape(dw, w.shape))

        add_bias_grad = None if bias is None else bias.add_grad
        check = partial(self.check_gradient, xp, shape=y.shape)
        return y, TwoPartBackward(gradients, add_weight_grad, add_bias_grad, check=check)

    def options(self) -> str:
        channels = f"{self.in_channels}, {self.out_channels}"
        more = f"bias={self.bias is not None}, {self.weight.shape[0]} connections"
        return f"{channels}, {super().options()}, {more}"


def _checked(connections: Iterable[Iterable[bool]]) -> list[list[bool]]:
    """The table as lists, with rows of equal length that have a True each."""
    try:
        table = [list(row) for row in connections]
    except TypeError:
        table = []
    lengths = {len(row) for row in table}
    if len(lengths) != 1 or not all(linked in (0, 1) for row in table for linked in row):
        msg = (
            "connections must be a table of booleans with a row for each output map and a column "
            f"for each input map, got {connections!r}"
        )
        raise InputError(msg)
    for o, row in enumerate(table):
        if not any(row):
            msg = f"connections leaves output map {o} without an input; give it one, or drop it"
            raise InputError(msg)
    return [[bool(linked) for linked in row] for row in table]
