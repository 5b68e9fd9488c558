"""What holds for all CUDA kernels: parity within its bounds, no race, no read beyond the end."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from accelerators.emulation import machine as emulation
from accelerators.emulation.machine import Emulation
from accelerators.kernels.reference import (
    CONVOLUTIONS,
    SMALL_TILE,
    convolve,
    ends_with,
    needs_a_compiler,
)
from accelerators.recurrences import Problem
from layouts import Real
from nightly import NIGHTLY

from xbp import accelerators, nn, primitives
from xbp.accelerators import cuda
from xbp.accelerators.cuda import (
    activations,
    attention,
    batch_norm,
    convolution,
    cross_entropy,
    cublas,
    embedding,
    launch,
    layer_norm,
    passes,
    philox,
    pooling,
    product,
    recurrence,
    rows,
    short,
    softmax,
    whole,
)
from xbp.nn.sequential import plan_of
from xbp.primitives import cells
from xbp.testing.catalogue import AcceleratorItem, Item, catalogue

pytestmark = needs_a_compiler
ITEMS = [item for item in catalogue() if isinstance(item, Item) and item.kind == "primitive"]


# --- the cases of `xbp parity`, within its bounds ------------------------------------------------


@pytest.mark.usefixtures("_in_use")
@pytest.mark.parametrize("function", cuda.implementations(), ids=lambda function: function.__name__)
def test_the_catalogue(function: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(short, "LEAST", 0)
    monkeypatch.setenv("XBP_WINOGRAD", "all")
    monkeypatch.setattr(attention, "plan", lambda sizes: (SMALL_TILE, SMALL_TILE))
    name = function.__name__
    here = accelerators.Accelerator(name, "numpy", function)
    cases = [item for item in ITEMS if item.name == name]
    if not NIGHTLY:  # each case and the same with scattered arrays stand in pairs: one, then other
        turn = 8 if name in ("chain", "recurrence") else 4  # whose programs are many
        cases = [item for i, item in enumerate(cases) if i % turn in (0, turn - 1)]
    assert cases
    computed = 0
    for item in cases:
        fields = vars(item) | {"kind": "accelerator", "differentiable": False}
        found = AcceleratorItem(**fields, accelerator=here).check(["numpy"])
        assert [str(finding) for finding in found if not finding.passed] == []
        computed += bool(found)
    dispatched = hasattr(getattr(primitives, name), "reference")
    assert computed or not dispatched


# --- what must hold for all of them --------------------------------------------------------------


def everything(dtype: str, machine: Emulation) -> Iterator[Real]:
    """The results of each kernel, with more than one block where possible."""
    rng = np.random.default_rng(0)
    for case in CONVOLUTIONS[1:3]:
        yield from convolve(machine, case, "rows_first", dtype)[0]
    for n in (3, 8):
        x, weight = rng.normal(size=(n, 20, 6, 7)), rng.normal(size=(40, 20, 3, 2))
        given = [machine.guarded(array.astype(dtype)) for array in (x, weight)]
        y, backward = convolution.convolve(*given, stride=(2, 1), padding=(1, 1))
        yield from (y, *backward(y)[:2])
    x, weight = rng.normal(size=(3, 16, 6, 7)), rng.normal(size=(16, 16, 3, 3))
    given = [machine.guarded(array.astype(dtype)) for array in (x, weight, weight[:, 0, 0, 0])]
    with mock.patch.dict(os.environ, XBP_WINOGRAD="all"):
        y, backward = convolution.convolve(*given, padding=(1, 1), relu=True)
    yield from (y, *backward(y))
    x = rng.integers(-2, 3, (17, 3, 6, 7)).astype(dtype)
    for kind in (pooling.max_pool, pooling.average_pool):
        y, backward = kind(x, kernel_size=(3, 3), stride=(2, 2), padding=(1, 1))
        yield from (y, *backward(y))
    yield activations.add(x, x)
    for activation in (activations.rectify, activations.gelu):
        y, backward = activation(x)
        yield from (y, *backward(x))
    for shape in ((700, 3), (9, 3, 50), (32, 2, 9, 8)):
        x, dy = (machine.guarded(rng.normal(size=shape).astype(dtype)) for _ in range(2))
        y, backward = batch_norm.batch_normalize(
            x, dy.reshape(-1)[: shape[1]], None, None, None, eps=1e-3, activation="gelu"
        )
        *gradients, moments = backward(dy)
        yield from (y, *gradients[:2], *moments[1:])
        kept = *(machine.guarded(it) for it in moments[1:]), machine.guarded(np.array(5))
        batch_norm.track(*kept, *moments[1:], share=0.25, correction=1.5)
        yield from kept
    for shape in ((300, 40), (3, 3000)):
        x, dy = (machine.guarded(rng.normal(size=shape).astype(dtype)) for _ in range(2))
        y, backward = layer_norm.normalize(x, dy[0], x[0], axes=(1,), eps=1e-3)
        yield from (y, *backward(dy))
        y, backward = softmax.softmax(x, axis=1)
        yield from (y, *backward(dy))
        images, own = (it.reshape(3, 2, 5, -1) for it in (x, dy))
        y, backward = layer_norm.normalize(
            images, own[0, :, :, :1], own[1, :, :, :1], axes=(2, 3), eps=1e-3
        )
        yield from (y, *backward(own))
    q, k, mask = (
        rng.normal(size=size).astype(dtype) for size in ((2, 2, 9, 4),) * 2 + ((2, 2, 9, 9),)
    )
    y, backward = softmax.attention(q, k, k, np.eye(2, 9) > 0, mask, causal=True)
    yield from (y, *backward(y))
    with mock.patch.object(attention, "plan", return_value=(SMALL_TILE, SMALL_TILE)):
        for n in (35, 36):  # queries and keys
            q, k = (
                machine.guarded(rng.normal(size=(2, 2, times, n % 32)).astype(dtype))
                for times in (n, 40)
            )
            y, backward = attention.by_blocks(q, k, k, np.eye(2, 40) > 0, None, causal=True)
            yield from (y, *backward(y))
    y, backward = embedding.embedding(
        np.arange(300) ** 2 % 3, machine.guarded(dy[:, :140].copy()), 2
    )
    yield from (y, backward(y)[1])
    values = machine.guarded(rng.normal(size=(300, 140)).astype(dtype))
    yield embedding.scatter_add(values, np.arange(300) ** 2 % 350, 360)
    p, m = (machine.guarded(rng.normal(size=3000).astype(dtype)) for _ in range(2))
    passes.average(p, 0.5, m)
    passes.average(p, 0.5, m, m)
    passes.add_scaled(p, 0.5, m)
    passes.accumulate(p, 0.5, m, 0.25)
    passes.rescale(p, 0.75)
    yield passes.plus_scaled(p, 0.5, m)
    passes.normalized_step(p, 0.1, m, 1.5, m * m, 1e-3)
    moments = [machine.guarded(array) for array in (m, m * m)]
    passes.adaptive_step(p, *moments, m, 0.9, 0.99, 0.1, 1.5, 1e-3)
    yield from moments
    yield p
    for classes in (10, 40):
        logits = rng.normal(size=(600, classes)).astype(dtype)
        yield from cross_entropy.cross_entropy(logits, np.arange(600) % classes, 1.0)
        yield from cross_entropy.cross_entropy(logits, logits**2, 1.0)
    yield philox.random_bits(p, (1500,), key=(1, 2), counter=(3, 4, 5))
    yield from rows.take_row(np.array([2]), p.reshape(3, -1), m.reshape(5, -1))
    table, index = machine.guarded(np.zeros((4, 700), dtype)), machine.guarded(np.array([2]))
    rows.append_row(index, table, p[:700])
    with rows.appending(index, table, m[:700]):
        passes.rescale(other := machine.guarded(p), 0.5)
    yield from (table, index, other)
    yield from rows.gather(np.arange(9), np.array(3), (1, 5, 1), p.reshape(10, -1))
    images = np.tile(p, 4)[: 9 * 70].reshape(9, 2, 5, 7)
    step = np.array([2]), np.arange(9), (0, 5, 1), (np.eye(3, dtype=int), p.reshape(3, -1))
    for some in rows.take_step(*step, (images,)):
        yield from some
    yield from rows.gather(np.arange(9), np.array(3), (1, 5, 1), images)
    for step in (cells.gru, cells.lstm):
        problem = Problem(step, (4, 5, 3, 12), dtype, padded=True, chunk=2)
        problem.arguments = [machine.guarded(array) for array in problem.arguments]
        yield from problem.solve(recurrence.recurrence)
    for m, n in ((40, 50), (700, 900)):
        a, b = rng.normal(size=(m, 45)).astype(dtype), rng.normal(size=(n, 45)).astype(dtype)
        yield product.matmul(a, b.T)
        y, backward = product.affine(a, b, b[:, 0], relu=True)
        yield from (y, *backward(y))
    for form in cublas.SHORT:
        for size in (3, 4000):
            yield short.shorten(machine.guarded(rng.normal(size=size).astype("f4")), form)
    yield from whole_network(dtype, machine)


def whole_network(dtype: str, machine: Emulation) -> Iterator[Real]:
    """The results of a network computed by blocks of two samples."""
    network = nn.Sequential(
        *(nn.Conv2d(1, 3, 3, padding=1, rng=0), nn.ReLU(), nn.MaxPool2d(2), nn.AvgPool2d(2, 1)),
        *(nn.Flatten(), nn.Linear(27, 40, rng=1), nn.Tanh(), nn.Linear(40, 5, rng=2)),
    ).astype(dtype)
    (part,) = plan_of(network).parts
    given = [machine.guarded(parameter.data) for parameter in network.parameters()]
    x = np.random.default_rng(0).normal(size=(launch.PROCESSORS + 3, 1, 8, 8)).astype(dtype)
    with mock.patch.dict(os.environ, XBP_WHOLE="all"):
        operations, rest = part.operations[True], iter(given)  # type: ignore[union-attr]
        y, backward = whole.network(x, *given, operations=operations)
        own = [list(islice(rest, 2)) if kind in whole.LEARNED else [] for kind, _ in operations]
        loss, labels = (primitives.cross_entropy, (("scale", 0.5),)), np.arange(len(x)) % 5
        done = whole.chain_to_loss(x, operations, own, loss, labels)
    yield from (y, *backward(y), *done[:2], *done[2]())


def test_no_race(dtype: str, machine: Emulation) -> None:
    """The results are equal bit for bit for each order of threads and blocks."""
    machine.order = 0
    first = list(everything(dtype, machine))
    assert all(np.isfinite(array).all() for array in first)  # all results were written
    kernels = {name for file in FILES for name in emulation.kernels(launch.source(file))}
    assert set(machine.launches) == kernels
    for order in (1, 2, *range(3, 9 if NIGHTLY else 3)):
        machine.order = order
        for a, b in zip(everything(dtype, machine), first, strict=True):
            assert a.tobytes() == b.tobytes()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_nothing_is_read_beyond_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor beyond the end of an array, even if unused: on a GPU that can end the process."""

    def run() -> None:
        fenced = launch.machines["numpy"] = Emulation(fenced=True)
        for dtype in launch.REALS:
            assert all(np.isfinite(array).all() for array in everything(dtype, fenced))

    assert ends_with(run) == 0
    whole = launch.source
    right, wrong = "if (at >= all) continue;", "if (at > all) continue;"
    monkeypatch.setattr(launch, "source", lambda file: whole(file).replace(right, wrong))
    assert ends_with(run) in (-signal.SIGSEGV, -signal.SIGBUS)


FILES = (
    *("recurrence.cu", "recurrence_backward.cu"),
    *("convolution.cu", "pooling.cu", "passes.cu", "cross_entropy.cu", "philox.cu"),
    *("activations.cu", "batch_norm.cu", "layer_norm.cu", "softmax.cu", "embedding.cu"),
    *("attention_forward.cu", "attention_backward.cu"),
    *("whole_forward.cu", "whole_backward.cu", "whole_weights.cu", "whole_step.cu"),
    *("winograd.cu", "winograd_to_weight.cu"),
    *("product.cu", "rows.cu", "short.cu", "wide.cu", "wide_to_input.cu", "wide_to_weight.cu"),
)


def test_these_are_all_files() -> None:
    assert {path.name for path in Path(launch.__file__).parent.glob("*.cu")} == set(FILES)


def test_the_emulation_finds_a_race(machine: Emulation, monkeypatch: pytest.MonkeyPatch) -> None:
    text, barrier = launch.source("convolution.cu"), "    __syncthreads();\n"
    end = text.index("real *const mine = kernels")  # teams' sums overwrite weights
    before, _, between = text[:end].rpartition(barrier)
    monkeypatch.setattr(launch, "source", lambda file: before + between + text[end:])
    found = []
    for order in (0, 1):
        machine.order = order
        found.append(convolve(machine, CONVOLUTIONS[4], "mirrored", "float64")[0][1])
    assert found[0].tobytes() != found[1].tobytes()


def test_the_emulation_finds_what_is_not_written_or_beyond_the_end(
    machine: Emulation, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, guard = launch.source("pooling.cu"), "if (at >= C * ROWS"
    # A third channel behind x: a kernel that reads beyond the end finds 1, not the heap's content,
    # which may be nan and make its output equal to a guard.
    x = np.ones((3, 4, 4, 5))[:2].transpose(3, 0, 1, 2)
    window = {"kernel_size": (2, 2), "stride": (2, 2)}
    more, less = (text.replace(guard, f"if (at {what} ROWS") for what in ("> C *", ">="))
    monkeypatch.setattr(launch, "source", lambda file: more)
    with pytest.raises(AssertionError, match="beyond the end"):
        pooling.average_pool(x, **window)
    machine.given.clear()
    monkeypatch.setattr(launch, "source", lambda file: less)
    assert np.isnan(pooling.average_pool(x, **window)[0]).any()


def test_the_emulation_finds_threads_at_different_barriers(
    machine: Emulation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convolution, "FILL", 1)
    source = launch.source("convolution.cu")
    text = source.replace("continue; /* no return", "return; /* a")
    assert text != source
    monkeypatch.setattr(launch, "source", lambda file: text)
    with pytest.raises(AssertionError, match="different barriers"):
        convolve(machine, CONVOLUTIONS[2], "mirrored", "float64")
