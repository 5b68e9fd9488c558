"""Times of kernels on a GPU: the median of replays of a CUDA graph of several calls."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from contextlib import suppress
from typing import Any

CALLS, REPLAYS = 20, 11
LEAST = 1e-3
"""The least time in microseconds, as events of a stand-in for a GPU give 0."""


def replayed(call: Callable[[], Any], calls: int = CALLS, replays: int = REPLAYS) -> float:
    """Microseconds of a call that computes by CuPy."""
    import cupy

    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        kept = [call() for _ in range(2)]  # compile, allocate
        stream.synchronize()
        stream.begin_capture()
        try:
            for _ in range(calls):
                kept[0] = call()
        except BaseException:
            with suppress(cupy.cuda.runtime.CUDARuntimeError):  # says that the capture is invalid
                stream.end_capture()
            raise
        graph = stream.end_capture()
        events = [(cupy.cuda.Event(), cupy.cuda.Event()) for _ in range(replays)]
        graph.launch()
        for begin, end in events:
            begin.record(stream)
            graph.launch()
            end.record(stream)
        stream.synchronize()
    times = [cupy.cuda.get_elapsed_time(begin, end) for begin, end in events]
    return max(LEAST, 1e3 * statistics.median(times) / calls)


def replayed_by_torch(call: Callable[[], Any], calls: int = CALLS, replays: int = REPLAYS) -> float:
    """Microseconds of a call that computes by PyTorch."""
    import torch

    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):  # cuDNN's choice among its algorithms
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(calls):
            call()
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(replays)]
    graph.replay()
    for begin, end in events:
        begin.record()
        graph.replay()
        end.record()
    torch.cuda.synchronize()
    return 1e3 * statistics.median(begin.elapsed_time(end) for begin, end in events) / calls
