"""Recurrent layers of the known cells, all time steps in one launch forward and one backward.

Products of whole sequences, W_ih x and the gradients of weights and input, are made outside.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from functools import lru_cache
from itertools import product
from typing import Any, NamedTuple

from xbp.accelerators.cells import GATES, GRU, LSTM, cell_of
from xbp.accelerators.cuda import tuned
from xbp.accelerators.cuda.launch import (
    MOST_ENTRIES,
    PROCESSORS,
    REALS,
    Machine,
    blocks,
    dense,
    fits,
    machine_of,
    pointer,
    structure,
)
from xbp.accelerators.cuda.passes import add_up
from xbp.accelerators.cuda.product import Factors, is_large, multiply
from xbp.accelerators.shared import Array, incoming
from xbp.primitives.product import matmul

Task = structure(
    "Task",
    **dict.fromkeys(("p", "weight", "bias_ih", "bias_hh", "padding", "h_first"), pointer),
    **dict.fromkeys(("c_first", "h", "before", "kept", "c_last", "dh", "dh_last"), pointer),
    **dict.fromkeys(("dc_last", "dp", "dq", "dbias", "dh_first", "dc_first"), pointer),
    **dict.fromkeys(("dh_step", "dh_row"), ctypes.c_longlong),
    **dict.fromkeys(("n", "steps", "step", "row", "reverse", "chunk"), ctypes.c_int),
)
KEPT = (0, 0, 5, 4)  # as in recurrence.h
MOST_BYTES = 2**20
"""The most bytes of recurrent weights. Each block reads in each step what registers do not hold; of
larger matrices the steps' own products read less. Not measured."""
MOST_SHARED = 48 << 10
"""Bytes of shared memory that every GPU gives a block without being asked."""
SAMPLES, THREADS = (1, 2, 4), (32, 64, 128, 192, 256, 384, 512)
PARTS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64)
MOST_SQUARES, MOST_UNITS = 64, 4
"""Squares of 4×4 weights and units of a thread: the kernels are unrolled over them."""
REGISTERS, MOST_REGISTERS = 65536, 255
"""Of a multiprocessor and of a thread, in words of four bytes."""
OTHERS, OF_UNIT = 12, 16
"""Registers of a thread for addresses and for each unit. With them, and those of `used_by`, ptxas
spills nothing, or a few words, in the plans for 64 to 256 units on sm_90."""
NEAR = 160 << 10
"""Bytes of weights that the first cache of an H100 is assumed to hold."""
FAR, WAIT, LATENCY = 4, 48, 300
"""Estimates: how many times as long loads from the second cache take; threads that wait for half of
the time, as in wide.py; and cycles of a step in which nothing is multiplied."""


class Plan(NamedTuple):
    """How the product with W_hh or its transpose is divided; see recurrence.h."""

    samples: int
    threads: int
    parts: int
    held: int

    def squares(self, outputs: int, terms: int) -> tuple[int, int]:
        """A thread's squares across outputs and terms."""
        groups = self.threads // self.parts
        return blocks(blocks(outputs, 4), groups), blocks(blocks(terms, 4), self.parts)


def recurrence(
    x: Array,
    weight_ih: Array,
    weight_hh: Array,
    bias_ih: Array | None,
    bias_hh: Array | None,
    *states: Array,
    step: Any,
    reverse: bool = False,
    padding: Array | None = None,
    chunk: int | None = None,
) -> Any:
    """See `xbp.primitives.recurrence`; for the cells of `xbp.primitives.cells`."""
    arrays = (x, weight_ih, weight_hh, bias_ih, bias_hh, *states)
    cell = cell_of(*arrays, step=step)
    if cell is None or not fits(*arrays) or weight_hh.nbytes > MOST_BYTES:
        return NotImplemented
    (T, N, _), dtype, hidden = x.shape, x.dtype, weight_hh.shape[1]
    width, gated = GATES[cell] * hidden, cell >= LSTM
    machine = machine_of(x)
    forth, back = (
        measured(machine, GATES[cell], hidden, N, dtype, backward=backward)
        for backward in (False, True)
    )
    if forth is None or back is None or T * N * max(width, KEPT[cell] * hidden) >= MOST_ENTRIES:
        return NotImplemented
    # Rows of all arrays are in the order in which those of x lie in memory: (N, T) for the input of
    # a network, (T, N) for that of a further layer.
    by_samples = not x.flags.c_contiguous and x.transpose(1, 0, 2).flags.c_contiguous
    rows = dense(x.transpose(1, 0, 2) if by_samples else x).reshape(T * N, -1)
    weight_hh, states = dense(weight_hh), tuple(map(dense, states))
    biases = [None if bias is None else dense(bias) for bias in (bias_ih, bias_hh)]
    mask = None if padding is None else dense(padding)
    whole = hidden * dtype.itemsize % 16 == 0 and machine.address(weight_hh) % 16 == 0

    def timed(rows: Array) -> Array:
        """(rows, …) → (T, N, …), a view."""
        first = (N, T) if by_samples else (T, N)
        shaped = rows.reshape(*first, rows.shape[-1])
        return shaped.transpose(1, 0, 2) if by_samples else shaped

    def launch(file: str, name: str, plan: Plan, **given: Any) -> None:
        macros = macros_of(plan, cell, hidden, dtype, whole)
        given |= {"weight": weight_hh, "padding": mask, "h": h, "before": before, "kept": kept}
        task = Task(
            **{key: machine.address(it) for key, it in given.items() if it is not None},
            n=N, steps=T, step=1 if by_samples else N, row=T if by_samples else 1,
            reverse=reverse, chunk=chunk or T,
        )  # fmt: skip
        if "dh" in given:
            task.dh_step, task.dh_row = (s // dtype.itemsize for s in given["dh"].strides[:2])
        machine.launch((file, name), macros, (blocks(N, plan.samples), 1), plan.threads, task)

    h, before = (machine.empty((T * N, hidden), dtype) for _ in range(2))
    kept = machine.empty((T * N, KEPT[cell], hidden), dtype) if gated else None
    c_first, c_last = None, None
    if cell == LSTM:
        c_first, c_last = states[1], machine.empty((N, hidden), dtype)
    launch(
        "recurrence.cu", "recur", forth, p=matmul(rows, weight_ih.T), bias_ih=biases[0],
        bias_hh=biases[1], h_first=states[0], c_first=c_first, c_last=c_last,
    )  # fmt: skip
    all_times = timed(h)
    last = all_times[0 if reverse else T - 1]

    def gradients(dh: Array, dstates: tuple[Array, ...], wants_dx: bool = True) -> Any:
        dh = incoming(dh, (T, N, hidden), dtype)
        if dh.strides[2] != dh.itemsize or any(s % dh.itemsize for s in dh.strides):
            dh = dense(dh)
        dlast = [dense(incoming(d, (N, hidden), dtype)) for d in dstates]
        dfirst = [machine.empty((N, hidden), dtype) for _ in dlast]
        dQ = machine.empty((T * N, width), dtype)
        dP = machine.empty((T * N, width), dtype) if cell == GRU else dQ
        dbias = machine.empty((blocks(N, back.samples), 2, width), dtype)
        dc_last, dc_first = (dlast[1], dfirst[1]) if cell == LSTM else (None, None)
        launch(
            "recurrence_backward.cu", "recur_backward", back, dh=dh, dh_last=dlast[0],
            dc_last=dc_last, dp=dP, dq=dQ, dbias=dbias, dh_first=dfirst[0], dc_first=dc_first,
        )  # fmt: skip

        pairs = (dP.T, rows), (dQ.T, before)

        def of_weights() -> list[Array]:
            return [c for c, _ in multiply(*(Factors(a, b) for a, b in pairs))]

        def of_rest() -> tuple[Array | None, Array | None]:
            """∂L/∂x and those of the biases, which wait for no other product."""
            dx = timed(matmul(dP, weight_ih)) if wants_dx else None
            return dx, None if bias_ih is None else add_up(dbias)

        if any(is_large(a, b) for a, b in pairs):
            (of_ih, (dx, total)), of_hh = machine.side_by_side(
                lambda: (matmul(*pairs[0]), of_rest()), lambda: matmul(*pairs[1])
            )
        else:
            (of_ih, of_hh), (dx, total) = machine.side_by_side(of_weights, of_rest)
        of_biases = (None, None) if total is None else (total[0], total[1])
        return dx, tuple(dfirst), of_ih, of_hh, *of_biases

    return (all_times, (last, c_last) if cell == LSTM else (last,)), gradients


def macros_of(plan: Plan, cell: int, hidden: int, dtype: Any, whole: bool) -> dict[str, Any]:
    """The macros of both files; `whole` if all rows of W_hh can be read by 16 bytes."""
    return {
        "real": REALS[dtype.name], "CELL": cell, "HIDDEN": hidden, "SAMPLES": plan.samples,
        "THREADS": plan.threads, "PARTS": plan.parts, "HELD": plan.held, "WHOLE": int(whole),
    }  # fmt: skip


def measured(
    machine: Machine, gates: int, hidden: int, n: int, dtype: Any, *, backward: bool
) -> Plan | None:
    """The plan that was measured, or that of the rule; by samples for each multiprocessor."""
    plan = plan_for(gates, hidden, n, dtype.itemsize, backward=backward)
    if plan is None:
        return None
    key = f"{dtype.name}, {hidden} units, gates: {gates}, {'backward' if backward else 'forward'}"
    load = min(max(SAMPLES), blocks(n, PROCESSORS))
    outputs, terms = (hidden, gates * hidden)[:: 1 if backward else -1]
    decision = tuned.Decision("recurrence", key, (load,))
    numbers = tuned.choose(
        machine, decision, lambda it: has_room(it, outputs, terms, dtype.itemsize), lambda: plan
    )
    return Plan(*numbers)


@lru_cache(512)
def has_room(numbers: tuned.Numbers, outputs: int, terms: int, itemsize: int) -> bool:
    """Whether numbers are a plan that shared memory and registers have room for."""
    most = next((it for it in plans(outputs, terms, itemsize) if it[:3] == numbers[:3]), None)
    return most is not None and len(numbers) == 4 and 0 <= numbers[3] <= most.held


@lru_cache(512)
def plan_for(
    gates: int, hidden: int, n: int, itemsize: int, *, backward: bool = False
) -> Plan | None:
    """The plan with the shortest estimated step; None if no plan has room in shared memory."""
    outputs, terms = gates * hidden, hidden
    if backward:
        outputs, terms = terms, outputs
    choices = plans(outputs, terms, itemsize)
    return min(choices, key=lambda it: cycles(it, outputs, terms, n, itemsize), default=None)


def plans(outputs: int, terms: int, itemsize: int) -> Iterator[Plan]:
    """Those that shared memory and registers have room for, with as many held weights as fit."""
    words, hidden = itemsize // 4, min(outputs, terms)
    for samples, threads, parts in product(SAMPLES, THREADS, PARTS):
        plan = Plan(samples, threads, parts, 0)
        if threads % parts:
            continue
        quads, strips = plan.squares(outputs, terms)
        apart = 4 * quads * (threads // parts) + 4
        shared = samples * (4 * strips * parts + parts * apart) + 2 * max(outputs, terms)
        units, squares = blocks(samples * hidden, threads), quads * strips
        if shared * itemsize > MOST_SHARED or squares > MOST_SQUARES or units > MOST_UNITS:
            continue
        most = min(MOST_REGISTERS, REGISTERS // threads // 8 * 8) - OF_UNIT * units * words
        held = squares
        while held and used_by(plan._replace(held=held), quads, strips, words) > most:
            held -= 1
        yield plan._replace(held=held)


def used_by(plan: Plan, quads: int, strips: int, words: int) -> int:
    """Registers of a thread, but for its units, if a number has so many words."""
    in_use = 0 if plan.held == quads * strips else 16 + 8 * plan.samples
    sums = 4 * plan.samples * (quads + 1)
    return OTHERS + words * (16 * plan.held + sums + in_use)


def cycles(plan: Plan, outputs: int, terms: int, n: int, itemsize: int) -> float:
    """Estimated cycles of a step on the busiest multiprocessor."""
    samples, threads, parts, held = plan
    words, (quads, strips) = itemsize // 4, plan.squares(outputs, terms)
    unread = quads * strips - held
    far = FAR if unread * threads * 16 * itemsize > NEAR else 1
    each = blocks(blocks(n, samples), PROCESSORS)
    registers = used_by(plan, quads, strips, words)
    at_once = min(each, max(1, REGISTERS // (registers * threads)))
    lanes = max(threads, 128 / at_once)  # a warp multiplies with a quarter of the processor
    products = lanes / 128 * 16 * quads * strips * samples * words
    loaded = threads * (4 * strips * samples + 16 * unread * far) + 2 * parts * outputs * samples
    busy = max(products, loaded * words / 32) * (1 + WAIT / (at_once * threads))
    return each * busy + blocks(each, at_once) * (LATENCY + parts)


ACCELERATORS = (recurrence,)
