"""FLOP and bytes of a launch, from its own macros, argument and arrays."""

from __future__ import annotations

import math
from collections.abc import Callable

from benchmarks.gpu.roofline.dry import GEMM, Launch
from xbp.accelerators.cells import GATES
from xbp.accelerators.cuda.attention_plan import Sizes

UPDATED: dict[str, tuple[str, ...]] = {
    "adaptive_step": ("to", "a", "b"),
    "plus_scaled": (),
    "track": ("mean", "variance", "count"),
}
"""Arrays that are read and written; of other passes in passes.cu the first one."""
GATHERED = {
    "take": ("to",),
    "look_up": ("to", "index"),
    "clear": ("to",),
    "scatter_few": ("from_", "index"),
    "winograd_output": ("terms",),  # and images and kernels only where an entry is not finite
    "winograd_to_weight": ("terms",),
}
"""Arrays that count for kernels that read or write parts of others; "to" of copies counts twice."""


# --- FLOP ----------------------------------------------------------------------------------------


def _direct(it: Launch) -> int:
    """A convolution of few channels: all positions, of which gradients need less if pooled."""
    m = it.macros
    taps = m["C"] * m["O"] * m["KH"] * m["KW"]
    return 2 * it.task.n * taps * m["ROWS"] * m["COLUMNS"] * m["POOL_H"] * m["POOL_W"]


def _wide(of_outputs: str) -> Callable[[Launch], int]:
    """A convolution of many channels, one of whose arrays is as large as the output."""

    def flop(it: Launch) -> int:
        m = it.macros
        return 2 * int(it.array(of_outputs).size) * m["IN"] * m["KH"] * m["KW"]

    return flop


def _products(it: Launch) -> int:
    return sum(2 * product.m * product.n * product.k for product in it.task.of)


def _gemm(it: Launch) -> int:
    a, b = it.array("a"), it.array("b")
    return 2 * int(a.size) * int(b.shape[-1])


def _recurrent(it: Launch) -> int:
    """The products with W_hh alone; those of whole sequences have launches of their own."""
    gates, hidden = GATES[it.macros["CELL"]], it.macros["HIDDEN"]
    return 2 * it.task.steps * it.task.n * gates * hidden**2


def _attention(it: Launch) -> int:
    """What blocks compute, scores once more in each walk of the backward, without hidden ones."""
    t = it.task
    sizes = Sizes(t.all, t.queries, t.keys, t.d, t.e, 4, bool(it.macros["CAUSAL"]))
    features = sizes.d + sizes.e
    if it.name != "attend_by_blocks":
        features += sizes.d + sizes.e + (2 * sizes.d + sizes.e) * bool(t.dq.at)
    return int(2 * sizes.heads * sizes.queries * sizes.keys * sizes.seen * features)


FLOP: dict[str, Callable[[Launch], int]] = {
    "convolve": _direct,
    "convolve_to_weight": _direct,
    "convolve_to_input": _direct,
    "convolve_wide": _wide("y"),
    "convolve_wide_to_weight": _wide("dy"),
    "convolve_wide_to_input": _wide("dy"),
    "multiply": _products,
    "attend_by_blocks": _attention,
    "attend_by_blocks_backward": _attention,
    GEMM: _gemm,
    "recur": _recurrent,
    "recur_backward": _recurrent,
}
"""Multiplications and additions of products; all other kernels are bound by bytes or launches."""
UNKNOWN = ("whole",)
"""Beginnings of names of kernels whose products are not counted yet."""


def flop(it: Launch) -> int | None:
    """Multiplications and additions of products; None if they are not known."""
    if it.name.startswith(UNKNOWN) or it.file.startswith(UNKNOWN):
        return None
    return FLOP.get(it.name, lambda it: 0)(it)


# --- bytes ---------------------------------------------------------------------------------------


def bytes_of(it: Launch) -> int:
    """What a launch reads or writes, each array once, as if a cache held all that is read again."""
    if it.name in GATHERED:
        counted = [array for name, array in it.arrays if name in GATHERED[it.name]]
        copies = [array for name, array in it.arrays if name == "to" and it.name != "clear"]
        return sum(int(array.nbytes) for array in counted + copies * bool(counted))
    updated = UPDATED.get(it.name, ("to",) if it.file == "passes.cu" else ())
    if it.name == "add_up":
        updated = ()
    return sum(int(array.nbytes) * (1 + (name in updated)) for name, array in it.arrays)


# --- how a device computes -----------------------------------------------------------------------


def occupancy(threads: int, registers: int, shared: int, most: dict[str, int]) -> float:
    """The share of a multiprocessor's threads that can be resident, by CUDA's rules.

    Parameters
    ----------
    threads, registers, shared : int
        Threads of a block, registers of a thread, bytes of shared memory of a block.
    most : dict of str to int
        Of a multiprocessor: "threads", "registers", "shared", "blocks"; "reserved" bytes a block.
    """
    warps = math.ceil(threads / 32)
    each = math.ceil(max(registers, 1) * 32 / 256) * 256 * warps  # allocated by warps, in 256s
    fitting = min(
        most["blocks"],
        most["threads"] // (32 * warps),
        most["registers"] // each,
        most["shared"] // (shared + most["reserved"]),
    )
    return fitting * warps * 32 / most["threads"]
