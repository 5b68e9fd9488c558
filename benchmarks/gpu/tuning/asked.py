"""Families of what training steps ask for, each with the choices that are tried."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

from benchmarks.gpu.tuning import products
from benchmarks.gpu.tuning.calls import BOTH, SIZES, Call, calls_of, case_of
from benchmarks.gpu.tuning.row import Row
from xbp.accelerators.cuda import recurrence
from xbp.accelerators.cuda.tuned import Decision, Numbers

Options: TypeAlias = "Callable[[Decision, Numbers], Iterable[Numbers]]"
PLANS = 16
"""Plans of a recurrent layer that are tried, those with the shortest estimated steps."""


def threads(decision: Decision, rule: Numbers) -> Iterable[Numbers]:
    """Threads that share a row."""
    return [(32,), (64,), (128,), (256,)]


def parts(decision: Decision, rule: Numbers) -> Iterable[Numbers]:
    """Numbers of parts around the rule's, and none."""
    return [(rule[0] * 4 // k,) for k in (1, 2, 3, 4, 8, 16)] + [(1,), (0,)]


def yes_or_no(decision: Decision, rule: Numbers) -> Iterable[Numbers]:
    return [(0,), (1,)]


def of_products(decision: Decision, rule: Numbers) -> Iterable[Numbers]:
    """Tiles, depths and parts."""
    sizes = decision.sizes
    several = [(sizes[i], sizes[i + 1], sizes[i + 2]) for i in range(0, len(sizes), 3)]
    return products.choices(several).values()


def of_recurrence(decision: Decision, rule: Numbers) -> Iterable[Numbers]:
    """The plans with the shortest estimated steps."""
    hidden, gates = map(int, re.findall(r"(\d+) units, gates: (\d)", decision.key)[0])
    outputs, terms = (hidden, gates * hidden)[:: 1 if "backward" in decision.key else -1]
    itemsize = 4 if "float32" in decision.key else 8
    n = decision.sizes[0] * recurrence.PROCESSORS
    found = recurrence.plans(outputs, terms, itemsize)
    key = partial(cycles, outputs=outputs, terms=terms, n=n, itemsize=itemsize)
    return [tuple(plan) for plan in sorted(found, key=key)[:PLANS]]


def cycles(plan: recurrence.Plan, **sizes: int) -> float:
    return recurrence.cycles(plan, **sizes)


@dataclass(frozen=True)
class Asked:
    """What the package asks for under one name.

    Attributes
    ----------
    FAMILY : str
        The name, with which those of its rows begin.
    kernel : str
        The family of the decisions.
    FILES : tuple of str
        The kernels.
    options : callable
        What is tried, of a decision and the rule's choice; what is not allowed is left out.
    """

    FAMILY: str
    kernel: str
    FILES: tuple[str, ...]
    options: Options

    def rows(self, small: bool = False) -> Iterator[Row]:
        """A row for each different decision of the benchmarks' steps, with most to gain first."""
        found: dict[Decision, Call] = {}
        shares: dict[Decision, float] = {}
        for workload, batch, precision in SIZES:
            calls, step = calls_of(workload, 2 if small else batch, precision)
            for call in calls:
                for decision in call.asked:
                    if decision.family == self.kernel:
                        found.setdefault(decision, call)
                        share = call.seconds / step
                        shares[decision] = shares.get(decision, 0.0) + share
        for decision, call in sorted(found.items(), key=lambda item: -shares[item[0]]):
            allowed, rule = call.asked[decision]
            several = dict.fromkeys([rule, *filter(allowed, self.options(decision, rule))])
            name = f"{self.FAMILY} {decision.key} {'×'.join(map(str, decision.sizes))}"
            tiles = {" ".join(map(str, numbers)): numbers for numbers in several}
            case: Any = partial(case_of, call, self.kernel in BOTH)
            if len(tiles) > 1:
                yield Row(
                    self.FAMILY, name, call.flop, self.kernel, tiles, case, decision,
                    shares[decision], peer=False,
                )  # fmt: skip


def channels_and_teams(decision: Decision, rule: Numbers) -> Iterable[Numbers]:
    """Channels of a thread, and threads that share a sum."""
    return [(tile, teams) for tile in (8, 6, 5, 4, 3, 2, 1) for teams in (1, 2, 3, 4)]


ASKED = (
    Asked("convolve", "convolve", ("convolution.cu",), channels_and_teams),
    Asked("to input", "convolve_to_input", ("convolution.cu",), channels_and_teams),
    Asked("to weight", "convolve_to_weight", ("convolution.cu",), parts),
    Asked("cuBLAS", "large", ("product.cu",), yes_or_no),
    Asked("steps' products", "products", ("product.cu",), of_products),
    Asked("recurrence", "recurrence", ("recurrence.cu", "recurrence_backward.cu"), of_recurrence),
    Asked("batch_norm", "batch_norm", ("batch_norm.cu",), parts),
    Asked("layer_norm", "rows of layer_norm", ("layer_norm.cu",), threads),
    Asked("sums of layer_norm", "parts of layer_norm", ("layer_norm.cu",), parts),
    Asked("softmax", "softmax", ("softmax.cu",), threads),
    Asked("embedding", "embedding", ("embedding.cu",), parts),
    Asked("16 bits", "short", ("short.cu",), yes_or_no),
)
