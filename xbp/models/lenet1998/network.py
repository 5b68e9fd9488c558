"""The layers of LeNet-5, the connections of C3, and the codes of the digits."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from xbp import nn
from xbp.initializers import lenet_uniform, zeros
from xbp.models.lenet1998.negation import Negation
from xbp.models.lenet1998.partial_conv import PartialConv2d
from xbp.models.lenet1998.rbf import EuclideanRBF
from xbp.models.lenet1998.subsample import Subsample2d

if TYPE_CHECKING:
    from xbp.random import Generator

TABLE_I = """
X...XXX..XXXX.XX
XX...XXX..XXXX.X
XXX...XXX..X.XXX
.XXX..XXXX..X.XX
..XXX..XXXX.XX.X
...XXX..XXXX.XXX
"""
"""A row for each map of S2, a column for each map of C3: an X connects the two."""

CONNECTIONS = [[mark == "X" for mark in column] for column in zip(*TABLE_I.split(), strict=True)]

FIGURE_3 = """
.#####. ...##.. .#####. ####### .#####. .#####. ..####. ####### .#####. .#####.
....... ..###.. ....... .....## ....... ....... .##.... .....## ##...## ##..###
..###.. .####.. .#####. ....##. ....... ####### ##..... .....## ##...## ##...##
.##.##. ...##.. ##...## ...##.. .##..## ##..... ##..... ....##. ##...## ##...##
##...## ...##.. #....## ..####. .##..## ##..... ######. ...##.. .#####. ##..###
##...## ...##.. ....##. .....## ###..## .####.. ###..## ...##.. ##...## .######
##...## ...##.. ..###.. .....## ##...## ..####. ##...## ..##... ##...## .....##
##...## ...##.. .##.... .....## ##...## .....## ##...## ..##... ##...## .....##
.##.##. ...##.. ##..... ##...## ##..### ##...## ###..## ..##... ##...## ....##.
..###.. .###### ####### .#####. .###### .#####. .#####. ..##... .#####. .####..
....... ....... ....... ....... .....## ....... ....... ....... ....... .......
....... ....... ....... ....... .....## ....... ....... ....... ....... .......
"""
"""The digits in 7 × 12 pixels; bars seem to distinguish 0, 2, 4 and 5 from o, z, y and s.

They follow figure 3 of the paper as copied by "LeNet-from-Scratch" (mattwang44) and others, and
have not been compared with the printed figure.
"""

CODES = [
    [1 if pixel == "#" else -1 for row in rows for pixel in row]
    for rows in zip(*(line.split() for line in FIGURE_3.strip().splitlines()), strict=True)
]
"""The target of F6 for each digit: 84 numbers, 1 for a black pixel and -1 for a white one."""


def layers(dtype: Any, rng: Generator) -> list[nn.Layer]:
    """The layers of `LeNet5(variant="1998")`."""
    options: dict[str, Any] = {"dtype": dtype, "rng": rng, "weight_init": lenet_uniform}
    subsampling = options | {"weight_init": partial(lenet_uniform, fan_in=4)}
    biased = options | {"bias_init": zeros}
    return [
        nn.Conv2d(1, 6, 5, padding=2, **biased),
        nn.ScaledTanh(),
        Subsample2d(6, **subsampling),
        nn.ScaledTanh(),
        PartialConv2d(CONNECTIONS, 5, **options),
        nn.ScaledTanh(),
        Subsample2d(16, **subsampling),
        nn.ScaledTanh(),
        nn.Conv2d(16, 120, 5, **biased),
        nn.ScaledTanh(),
        nn.Flatten(),
        nn.Linear(120, 84, **biased),
        nn.ScaledTanh(),
        EuclideanRBF(CODES, dtype=dtype),
        Negation(),
    ]
