"""A small network in one kernel, its backward for the data in another, all ∂L/∂W in a third.

Kernels of single operations are bound by launches where networks are small. Here a block takes a
few samples through all layers of a chain, with activations in shared memory. Layers on images see
one sample after the other; linear layers see a block's samples together, so that a weight read from
the second-level cache serves all of them. With the loss at the end of the chain (`chain_to_loss`)
the same block goes back at once: two kernels, forward, loss and backward for the data, and ∂L/∂W.

Off by default, as it was not yet run on a GPU: ``XBP_WHOLE=1`` in the environment, when CuPy's
first array meets a primitive, switches it on for the chains where it pays by an estimate (`pays`),
``XBP_WHOLE=all`` for all that it can compute. Other chains are left to kernels by operation.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import astuple
from functools import cache
from itertools import chain as chained
from typing import Any

from xbp.accelerators.chains import Match
from xbp.accelerators.cuda import tuned, whole_plan
from xbp.accelerators.cuda.cross_entropy import LABELS
from xbp.accelerators.cuda.launch import Machine, blocks, dense, fits, lanes, machine_of
from xbp.accelerators.cuda.whole_kinds import Layer
from xbp.accelerators.cuda.whole_layers import KNOWN, layers_of
from xbp.accelerators.cuda.whole_plan import Division, Plan
from xbp.accelerators.cuda.whole_run import Run
from xbp.accelerators.shared import Array
from xbp.primitives.chain import Arrays, Operation, chain
from xbp.primitives.convolution import convolve
from xbp.primitives.cross_entropy import cross_entropy
from xbp.primitives.product import affine

FAMILY = "whole"
"""Of the choices in `tuned`: threads, samples and blocks of a multiprocessor."""
LEARNED = (affine, convolve)
"""The operations that have parameters."""
SECONDS_OF_LAUNCH = 3.5e-6
"""What a launch takes on the longest path of a graph, with the work of a small layer (H200)."""
BYTES_PER_SECOND = 5.5e12
"""From the second-level cache to all multiprocessors; an estimate for an H100 or H200."""


def wanted() -> str:
    """The setting of XBP_WHOLE: "", "1" or "all"."""
    said = os.environ.get("XBP_WHOLE", "")
    return said if said in ("1", "all") else ""


def whole_chain(operations: Sequence[Operation]) -> Match:
    """All operations of a chain, if each is known here and more than one has parameters."""
    several = _learned(operations) > 1
    return (len(operations), {"operations": tuple(operations)}) if several else None


def _learned(operations: Sequence[Operation]) -> int:
    """How many operations have parameters; 0 if one is not known here."""
    kinds = [operation for operation, _ in operations]
    return sum(kind in LEARNED for kind in kinds) * all(kind in KNOWN for kind in kinds)


def network(x: Array, *arrays: Array | None, operations: tuple[Operation, ...]) -> Any:
    """The operations of a chain, one after the other.

    A pixel that is not finite reaches ∂L/∂W of a convolution from the places of maxima alone.

    Parameters
    ----------
    x : array (N, …)
    *arrays : array or None
        Weight and bias of each linear layer and convolution.
    operations : tuple of (primitive, options)
    """
    run = _run(x, arrays, operations, with_loss=False)
    return NotImplemented if run is None else run.result()


def chain_to_loss(
    x: Array,
    operations: tuple[Operation, ...],
    parameters: Sequence[Arrays],
    loss: Operation,
    target: Array,
) -> Any:
    """See `xbp.primitives.chain_to_loss`: of cross-entropy with labels, in two launches."""
    function, options = loss
    if function is not cross_entropy or not _learned(operations):
        return NotImplemented
    if target.ndim != 1 or target.dtype.name not in LABELS or target.shape != x.shape[:1]:
        return NotImplemented
    arrays = tuple(chained.from_iterable(parameters))
    chain.check(x, arrays)
    run = _run(x, arrays, operations, with_loss=True)
    return NotImplemented if run is None else run.step(dense(target), dict(options)["scale"])


def _run(
    x: Array, arrays: Sequence[Array | None], operations: tuple[Operation, ...], with_loss: bool
) -> Run | None:
    """The run of a chain that is computed here; None for others."""
    shapes = tuple(None if array is None else array.shape for array in arrays)
    if not fits(x, *arrays) or x.ndim < 2 or not x.shape[0]:
        return None
    try:
        hash(operations)
    except TypeError:  # an option without a hash
        return None
    layers = layers_of(operations, x.shape, shapes)
    if layers is None:
        return None
    n, dtype, machine = x.shape[0], x.dtype, machine_of(x)
    parameters: list[Any] = [None if array is None else dense(array) for array in arrays]
    loads = tuple(
        lanes(dtype, layer.inputs, machine.address(weight))
        for layer, weight in zip(learned(layers), parameters[::2], strict=True)
    )
    plan = _planned(machine, layers, n, dtype, loads)
    if plan is None or not (wanted() == "all" or pays(plan, n, dtype.itemsize, with_loss)):
        return None
    return Run(plan, x, parameters)


def _planned(
    machine: Machine, layers: tuple[Layer, ...], n: int, dtype: Any, loads: tuple[int, ...]
) -> Plan | None:
    """The plan that was measured best for a network, or that of the rule; None if none fits."""

    def plan(numbers: tuple[int, ...]) -> Plan | None:
        if not whole_plan.is_possible(numbers):
            return None
        return whole_plan.plan(layers, dtype.itemsize, loads, Division(*numbers))

    def rule() -> tuple[int, ...]:
        return whole_plan.by_rule(layers, n, dtype.itemsize, loads) or ()

    decision = tuned.Decision(FAMILY, f"{dtype.name} {described(layers)}", (n,))
    numbers = tuned.choose(machine, decision, lambda them: plan(them) is not None, rule)
    return plan(numbers)


@cache
def described(layers: tuple[Layer, ...]) -> str:
    """A network in a table of choices: all numbers of its layers."""
    return "; ".join(" ".join(map(str, astuple(layer))) for layer in layers)


def learned(layers: Sequence[Layer]) -> list[Layer]:
    """The layers that have parameters."""
    return [layer for layer in layers if layer.learned]


def pays(plan: Plan, n: int, itemsize: int, with_loss: bool) -> bool:
    """Whether fewer launches save more time than reading the weights once a block takes.

    An estimate, not yet measured.
    """
    saved = sum(layer.launches for layer in plan.layers) - 3
    saved += 2 if with_loss else 0  # the loss, and the backward apart from the forward
    both = sum(
        layer.parameters * (2 if k else 1)  # the backward of the first layer reads no weights
        for k, layer in enumerate(plan.layers)
        if layer.learned
    )
    cost: float = blocks(n, plan.division.samples) * both * itemsize / BYTES_PER_SECOND
    return saved * SECONDS_OF_LAUNCH > cost
