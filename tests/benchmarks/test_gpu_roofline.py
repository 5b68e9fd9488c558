"""``python -m benchmarks.gpu roofline``: FLOP, bytes, occupancy of launches; times of a trace."""

from __future__ import annotations

import sys
from typing import Any

import pytest

import benchmarks.gpu.__main__ as gpu
from benchmarks.gpu.roofline import rows
from benchmarks.gpu.roofline.arithmetic import bytes_of, flop, occupancy
from benchmarks.gpu.roofline.command import main
from benchmarks.gpu.roofline.device import EMPTY, H200, HOPPER, Usage, usages_in
from benchmarks.gpu.roofline.dry import GEMM, Launch, launches_of
from benchmarks.gpu.roofline.timeline import Timed, Timeline, of_events
from xbp.accelerators.cuda import attention, product
from xbp.benchmarks.networks import make_model
from xbp.benchmarks.workloads import WORKLOADS
from xbp.benchmarks.workloads import flop as flop_of


@pytest.mark.parametrize(
    ("name", "batch"), [("lenet5-train", 8), ("vgg", 2), ("lstm", 3), ("mlp-128", 5)]
)
def test_flop_are_those_of_the_network(
    name: str, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XBP_WHOLE", raising=False)
    launches = launches_of(name, batch, "90")
    counted = [flop(it) for it in launches]
    assert None not in counted
    assert sum(it for it in counted if it) == flop_of("train", WORKLOADS[name].model, batch)


def test_large_products_are_cublas_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(product, "LEAST_LARGE", 1)
    launches, model = launches_of("mlp-128", 4, "90"), WORKLOADS["mlp-128"].model
    assert [it.name for it in launches].count(GEMM) >= 5
    assert sum(flop(it) or 0 for it in launches) == flop_of("train", model, 4)


def test_bytes_that_no_cache_saves() -> None:
    launches = {it.name: it for it in launches_of("lenet5-train", 8, "90")}
    model = make_model(*WORKLOADS["lenet5-train"].model, rng=0)
    parameters = sum(it.data.nbytes for it in model.parameters())
    # Parameters are read and written, their gradients read; a row of results counts for nothing.
    assert bytes_of(launches["add_scaled"]) == 3 * parameters
    pixels, labels = 8 * 28 * 28 * 4, 8 * 8
    assert 0 <= bytes_of(launches["take"]) - 2 * (pixels + labels) < 400, "and numbers of the step"
    to_weight = launches["convolve_to_weight"]
    assert bytes_of(to_weight) == sum(array.nbytes for _, array in to_weight.arrays)


def test_attention_counts_what_its_blocks_compute() -> None:
    sizes = {"all": 6, "queries": 5, "keys": 7, "d": 4, "e": 3}
    task, everything = attention.Task(**sizes), {"CAUSAL": 0}
    forward = Launch("attention_forward.cu", "attend_by_blocks", everything, task=task)
    assert flop(forward) == 2 * 6 * 5 * 7 * (4 + 3)
    backward = Launch(*attention.BACKWARD, everything, task=task)
    assert flop(backward) == 2 * 6 * 5 * 7 * (4 + 3 + 4 + 3)
    task.dq.at = 64
    assert flop(backward) == 2 * 6 * 5 * 7 * (4 + 3 + 4 + 3 + 4 + 3 + 4)
    forward.macros = {"CAUSAL": 1}
    assert flop(forward) == 2 * 6 * (1 + 2 + 3 + 4 + 5) * (4 + 3)


def test_kernels_that_are_not_counted_yet() -> None:
    assert flop(Launch("whole_forward.cu", "whole_forward")) is None
    assert flop(Launch("pooling.cu", "pool")) == 0


@pytest.mark.parametrize(
    ("threads", "registers", "shared", "expected"),
    [
        (256, 32, 0, 1),
        (256, 128, 0, 0.25),  # by registers
        (256, 33, 0, 0.75),  # allocated by eights
        (256, 32, 48 << 10, 0.5),  # four blocks, with the reserved bytes
        (32, 16, 0, 0.5),  # 32 blocks
        (1024, 72, 0, 0),
    ],
)
def test_occupancy(threads: int, registers: int, shared: int, expected: float) -> None:
    assert occupancy(threads, registers, shared, HOPPER) == expected


def test_what_ptxas_says() -> None:
    said = """
ptxas info    : Compiling entry function 'first' for 'sm_90'
ptxas info    : Function properties for first
    16 bytes stack frame, 20 bytes spill stores, 24 bytes spill loads
ptxas info    : Used 128 registers, used 1 barriers, 16384 bytes smem, 520 bytes cmem[0]
ptxas info    : Compiling entry function 'second' for 'sm_90'
ptxas info    : Function properties for second
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 30 registers, used 0 barriers
"""
    assert usages_in(said) == {"first": Usage(128, 16384, 20), "second": Usage(30, 0, 0)}


# --- times ---------------------------------------------------------------------------------------


def event(name: str, at: float, lasts: float, blocks: int = 1, kind: str = "kernel") -> Any:
    args = {"grid": [blocks, 1, 1], "block": [64, 1, 1]} if kind == "kernel" else {}
    return {"cat": kind, "name": name, "ts": at, "dur": lasts, "args": args}


def test_times_of_a_trace() -> None:
    events = [event("multiply", 0, 99), {"ph": "M", "name": "no kernel"}]
    for start, slower in ((10, 0), (28, 50), (100, 0)):
        events += [
            event("Memset", start + 8 + slower, 1, kind="gpu_memset"),
            event("multiply", start + 1, 2 + slower, 7),
            event("multiply", start + 4 + slower, 3, 7),
            event("multiply", start + 7 + slower, 1, 8),
            event("take", start, 1),
        ]
    events += [event("take", 120, 1), event("multiply", 121, 1, 7)]
    found = of_events(events, "take")
    # Of three steps, beginning 18, 72 and 20 µs before the next one, the two shorter ones.
    assert found.step == pytest.approx(19e-6)
    assert found.kernels["multiply", (7, 1), 64] == (2, pytest.approx(2.5e-6))
    assert found.kernels["multiply", (8, 1), 64] == (1, pytest.approx(1e-6))
    assert found.kernels["Memset", (0, 0), 0] == (1, pytest.approx(1e-6))
    with pytest.raises(RuntimeError, match="no two recorded steps"):
        of_events(events[:7], "take")


def test_launches_beside_their_times() -> None:
    launches = launches_of("lenet5-train", 8, "90")
    first = next(it for it in launches if it.name == "convolve")
    key = (first.name, first.grid, first.threads)
    timed = Timeline({key: Timed(1, 4e-6), ("copy", (5, 1), 32): Timed(2, 3e-6)}, 50e-6)
    usage = {((first.file, tuple(first.macros.items())), "convolve"): Usage(96, 16384, 8)}
    found = rows.rows_of(launches, usage, timed)
    assert sum(row.count for row in found) == len(launches) + 2
    lines = rows.table(found, H200, timed.step)
    (line,) = [line for line in lines if "`convolve`" in line and " 96, 16384, 8 spilled" in line]
    assert line.endswith("| launch | 4 | 8% |") and "31%" in line
    assert any(
        line.startswith("| `copy` | 2 | 5 × 32 |") and "| 3 | 12% |" in line for line in lines
    )
    assert lines[-1].endswith("| 10 | 20% |")


def test_what_bounds_a_launch() -> None:
    row = rows.Row("a", (1, 1), 32, flop=10**9, bytes=10**6)
    assert row.least(H200) == (10**9 / H200.flop, "FLOP")
    row.flop, row.bytes = None, 10**9
    assert row.least(H200) == (10**9 / H200.bandwidth, "bytes")
    row.bytes = 1
    assert row.least(H200) == (EMPTY, "launch")


# --- the command ---------------------------------------------------------------------------------


def test_without_a_gpu(capsys: Any, tmp_path: Any) -> None:
    assert main(["mlp-128", "--batch", "4", "--dry", "--output", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "batch 4" in said and "`cross_entropy`" in said and "at the peak of NVIDIA H200" in said
    (page,) = tmp_path.glob("*_roofline.md")
    assert said.strip() in page.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["lenet"], "there is no training step 'lenet'; choose from lenet5-train"),
        (["--batch", "0"], "--batch must be 1 or more, got 0"),
    ],
)
def test_mistakes(
    words: list[str], said: str, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu", "roofline", *words])
    with pytest.raises(SystemExit) as ended:
        gpu.main()
    assert ended.value.code == 2 and said in capsys.readouterr().err
