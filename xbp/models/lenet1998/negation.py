"""The sign that turns penalties into logits."""

from __future__ import annotations

from collections.abc import Callable

from xbp.backend import Array, Namespace
from xbp.nn import Elementwise


class Negation(Elementwise):
    """-x: turns penalties, where the least is best, into logits, where the largest is best."""

    def formula(self, xp: Namespace, x: Array) -> tuple[Array, Callable[[], Array]]:
        return -x, lambda: -xp.ones_like(x)
