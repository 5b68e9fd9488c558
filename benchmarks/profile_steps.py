"""Where the time of a training step goes on a CPU: its kernels, and what is around them.

    python -m benchmarks.profile_steps                   # every network of `xbp bench`, in Markdown
    python -m benchmarks.profile_steps lenet5-train gpt --seconds 10
    python -m benchmarks.profile_steps resnet20 --sizes  # a row for each size of a kernel

A step is the one that `xbp bench` times: forward, loss, backward, update, in an explicit loop.
Steps by turns run as they are, or with a clock around each call of a kernel; all times are medians
over the steps of a kind. "Around them" is the step as it is without its kernels as timed: Python,
and what numpy does. Rates count the multiplications and additions of a direct computation, in all
threads, so that Winograd's convolutions can exceed that of the square matrix product.
XBP_NUM_THREADS and XBP_ACCELERATE have their usual effect.
"""

from __future__ import annotations

import argparse
import ctypes
import time
from collections import defaultdict
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np

from xbp import accelerators
from xbp.accelerators.cpu import native
from xbp.benchmarks.networks import DATA, NETWORKS, input_shape
from xbp.benchmarks.side_xbp import Side
from xbp.benchmarks.workloads import WORKLOADS, flop
from xbp.machine import processor

ROWS = [name for name, it in WORKLOADS.items() if it.kind == "train"]
WARM_UP = 3
Key = tuple[str, str]


# --- what a call of a kernel computes ------------------------------------------------------------


def _convolved(t: native.Convolution) -> tuple[str, int]:
    size = f"{t.n} × {t.c} × {t.h} × {t.w}, {t.o} kernels {t.kh} × {t.kw}"
    size += f", stride {t.stride_h}" * (t.stride_h > 1)
    return size, t.n * t.o * t.oh * t.ow * t.c * t.kh * t.kw


def backward_of(described: Callable[[Any], tuple[str, int]]) -> Callable[[Any], tuple[str, int]]:
    """The same of the backward: products for ∂L/∂W, and for ∂L/∂x if it is wanted."""

    def backward(t: Any) -> tuple[str, int]:
        (size, products), wanted = described(t), getattr(t.dx, "data", t.dx)
        return size + ", without ∂L/∂x" * (not wanted), products * (2 if wanted else 1)

    return backward


def _multiplied(t: native.Product) -> tuple[str, int]:
    return f"{t.m} × {t.k} by {t.n} columns", t.m * t.n * t.k


def _mapped(t: native.Affine) -> tuple[str, int]:
    return f"{t.n} × {t.inputs} to {t.outputs}", t.n * t.inputs * t.outputs


GATES = (1, 1, 4, 3)


def _recurrent(t: native.Recurrence) -> tuple[str, int]:
    size = f"{t.steps} steps of {t.n} × {t.features}, {t.hidden} units"
    return size, t.steps * t.n * GATES[t.cell] * t.hidden * (t.features + t.hidden)


def _recurrent_backward(t: native.Recurrence) -> tuple[str, int]:
    """∂L/∂h of each step; without `delta`, products of ∂L/∂W and ∂L/∂x, too."""
    size, hidden = _recurrent(t)[0], t.steps * t.n * GATES[t.cell] * t.hidden * t.hidden
    outer = t.steps * t.n * GATES[t.cell] * t.hidden * (t.features + t.hidden)
    inputs = t.steps * t.n * GATES[t.cell] * t.hidden * t.features * bool(t.dx)
    return size, hidden + (0 if t.delta else outer + inputs)


def _attended(t: native.Attention) -> tuple[str, int]:
    size = f"{t.n} × {t.heads} heads, {t.times} × {t.s}, {t.d} features"
    places = (t.s + 1) / 2 if t.causal else t.s
    return size, int(t.n * t.heads * t.times * places * (t.d + t.e))


def _attended_backward(t: native.Attention) -> tuple[str, int]:
    size, products = _attended(t)
    return size, 2 * products


KNOWN: dict[str, tuple[type[ctypes.Structure], Callable[[Any], tuple[str, int]]]] = {
    "convolve": (native.Convolution, _convolved),
    "convolve_backward": (native.Convolution, backward_of(_convolved)),
    "convolve_positions": (native.Convolution, _convolved),
    "convolve_positions_backward": (native.Convolution, backward_of(_convolved)),
    "multiply": (native.Product, _multiplied),
    "multiply_direct": (native.Product, _multiplied),
    "multiply_blocked": (native.Product, _multiplied),
    "affine": (native.Affine, _mapped),
    "affine_backward": (native.Affine, backward_of(_mapped)),
    "recurrence": (native.Recurrence, _recurrent),
    "recurrence_backward": (native.Recurrence, _recurrent_backward),
    "attention": (native.Attention, _attended),
    "attention_backward": (native.Attention, _attended_backward),
}
"""The structure of a task, and its size and multiplications."""


class Clock:
    """Times of the calls of kernels, by name and size, while `on`."""

    def __init__(self) -> None:
        self.on, self.seconds, self.calls = False, dict[Key, float](), dict[Key, int]()
        self.products: dict[Key, int] = {}
        self._look_up, native.function = native.function, self.function

    def function(self, name: str, *types: Any, **result: Any) -> Callable[..., Any]:
        """`native.function`, timed."""
        kernel = self._look_up(name, *types, **result)
        short = name.removesuffix("_float32")

        def timed(*arguments: Any) -> Any:
            if not self.on:
                return kernel(*arguments)
            key = self._key(short, arguments)
            began = time.perf_counter()
            found = kernel(*arguments)
            self.seconds[key] = self.seconds.get(key, 0.0) + time.perf_counter() - began
            self.calls[key] = self.calls.get(key, 0) + 1
            return found

        return timed

    def _key(self, name: str, arguments: tuple[Any, ...]) -> Key:
        if name not in KNOWN:
            return name, ""
        structure, describe = KNOWN[name]
        task = arguments[0]._obj  # of ctypes.byref
        assert isinstance(task, structure)
        size, products = describe(task)
        self.products[name, size] = products
        return name, size

    def take(self) -> tuple[dict[Key, float], dict[Key, int]]:
        """Times and calls since the last time."""
        found = self.seconds, self.calls
        self.seconds, self.calls = {}, {}
        return found


# --- a network -----------------------------------------------------------------------------------


def steps_of(name: str, batch: int) -> Callable[[], object]:
    """A training step of a workload's network, as `xbp bench` times it, on two batches by turns."""
    workload, rng = WORKLOADS[name], np.random.default_rng(0)
    kind, *sizes = workload.model
    if (data := NETWORKS[kind].data) in DATA:
        x, y = DATA[data].draw(rng, 2 * batch)
    else:
        x = rng.standard_normal((2 * batch, *input_shape(*workload.model)), np.float32)
        y = rng.integers(10, size=2 * batch)
    side = Side({"backend": "numpy", "device": None, "trainer": False})
    network = side.network(workload.model, workload.optimizer, 1e-3)
    network.load(NETWORKS[kind].make(*sizes, rng=rng).state_dict())
    batches = [
        (side.array(x[rows].copy()), side.array(y[rows].copy()))
        for rows in (slice(batch), slice(batch, None))
    ]
    count = 0

    def step() -> object:
        nonlocal count
        count += 1
        return network.step(*batches[count % 2])

    return step


def profile(name: str, batch: int, clock: Clock, seconds: float, sizes: bool, rate: float) -> None:
    """Print the profile of one network."""
    step = steps_of(name, batch)
    whole: list[float] = []
    timed: defaultdict[Key, list[float]] = defaultdict(list)
    calls: dict[Key, int] = {}
    for _ in range(WARM_UP):
        step()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(whole) < WARM_UP:
        began = time.perf_counter()
        step()
        whole.append(time.perf_counter() - began)
        clock.on = True
        step()
        clock.on = False
        spent, calls = clock.take()
        for key, value in spent.items():
            timed[key].append(value)
    total = median(whole)
    rows = defaultdict[Key, list[float]](lambda: [0, 0.0, 0.0])
    for key, values in timed.items():
        row = rows[key if sizes else (key[0], "")]
        row[0] += calls[key]
        row[1] += median(values)
        row[2] += 2 * clock.products.get(key, 0) * calls[key]
    work = flop("train", WORKLOADS[name].model, batch)
    inside = sum(row[1] for row in rows.values())
    print(f"## {WORKLOADS[name].title}, batch {batch}: {1e3 * total:.3g} ms\n")
    print("| | calls | ms | of the step | GFLOP/s |\n| --- | --- | --- | --- | --- |")
    for (kernel, size), (count, time_in, flops) in sorted(rows.items(), key=lambda r: -r[1][1]):
        speed = f"{flops / time_in / 1e9:.0f}" if flops else ""
        title = f"`{kernel}`" + f" {size}" * bool(size)
        print(f"| {title} | {count} | {1e3 * time_in:.3g} | {time_in / total:.0%} | {speed} |")
    around = total - inside
    print(f"| around them | | {1e3 * around:.3g} | {around / total:.0%} | |")
    floor = work / rate
    print(f"| the step | | {1e3 * total:.3g} | | {work / total / 1e9:.0f} |")
    print(f"| its products at the rate above | | {1e3 * floor:.3g} | {floor / total:.0%} | |\n")


def product_rate() -> float:
    """FLOP a second of numpy's product of two square matrices of 2048."""
    a = np.random.default_rng(0).random((2048, 2048), np.float32)
    out, spent = np.empty_like(a), list[float]()
    for _ in range(9):
        began = time.perf_counter()
        np.matmul(a, a, out=out)
        spent.append(time.perf_counter() - began)
    return 2 * 2048**3 / median(spent)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("rows", nargs="*", metavar="ROW", help=", ".join(ROWS))
    parser.add_argument("--batch", type=int, help="in place of the sizes that `xbp bench` has")
    parser.add_argument("--seconds", type=float, default=5.0, help="for each network and batch")
    parser.add_argument("--sizes", action="store_true", help="a row for each size of a kernel")
    options = parser.parse_args()
    if unknown := set(options.rows) - set(ROWS):
        parser.error(f"unknown rows: {', '.join(sorted(unknown))}; there are {', '.join(ROWS)}")
    clock, rate = Clock(), product_rate()
    print("# Where the time of a training step goes\n")
    print(f"{processor()}; {accelerators.status()}; square product {rate / 1e9:.0f} GFLOP/s\n")
    for name in options.rows or ROWS:
        for batch in [options.batch] if options.batch else WORKLOADS[name].sizes:
            profile(name, batch, clock, options.seconds, options.sizes, rate)


if __name__ == "__main__":
    main()
