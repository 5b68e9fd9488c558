"""The sign that turns penalties into logits."""

from __future__ import annotations

from collections.abc import Callable

from xbp.backend import Array, Namespace
from xbp.nn import Elementwise


class Negation(Elementwise):
    """-x: penalties, of which the least is best, become logits, of which the largest is."""

    def formula(self, xp: Namespace, x: Array) -> tuple[Array, Callable[[], Array]]:
        return -x, lambda: -xp.ones_like(x)
