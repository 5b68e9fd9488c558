"""How blocks of threads divide the work of `whole`, and where their arrays are in shared memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple

from xbp.accelerators.cuda.launch import PROCESSORS, blocks
from xbp.accelerators.cuda.whole_kinds import (
    WARP,
    Convolution,
    Layer,
    Linear,
    Pooling,
    whole_loads,
)

THREADS = 512
"""Threads of a block. Not yet measured."""
MOST_THREADS = 2048
"""Of a multiprocessor; a block has half of them at most."""
MOST_BYTES = 48 * 1024
"""Shared memory of a block that every GPU has."""
MOST_SAMPLES = 8


class Division(NamedTuple):
    """Threads of a block, its samples, and the blocks of a multiprocessor at a time."""

    threads: int
    samples: int
    resident: int


class Plan(NamedTuple):
    """How a network is computed.

    Attributes
    ----------
    forward : dict
        The macros of whole_forward.
    backward : tuple of dict
        Those of whole_backward, without and with ∂L/∂x.
    step : dict
        Those of whole_step.
    """

    layers: tuple[Layer, ...]
    division: Division
    forward: dict[str, Any]
    backward: tuple[dict[str, Any], ...]
    step: dict[str, Any]


@lru_cache(256)
def plan(
    layers: tuple[Layer, ...], itemsize: int, loads: tuple[int, ...], division: Division
) -> Plan | None:
    """The plan of a division; None if it does not fit into shared memory.

    Parameters
    ----------
    layers : tuple of Layer
    itemsize : int
        Bytes of a number.
    loads : tuple of int
        Of each layer with parameters, how many neighbouring weights are loaded at once.
    division : Division
    """
    threads, samples, resident = division
    given = iter(loads)
    loads = tuple(next(given) if layer.learned else 1 for layer in layers)
    layers = tuple(it if isinstance(it, Pooling) else replace(it, threads=threads) for it in layers)
    forward = _places(*forward_arrays(layers, samples))
    backward = [_places(*backward_arrays(layers, samples, it, itemsize)) for it in (False, True)]
    # Parameters' gradients have the same bits with and without ∂L/∂x.
    most = MOST_BYTES // itemsize
    spare, spare_back = most - forward["SHARED"], most - backward[True]["SHARED"]
    if min(spare, spare_back) < 0:
        return None
    texts = _texts(layers, samples, loads, spare, spare_back)
    texts |= {"THREADS": threads, "SAMPLES": samples, "RESIDENT": resident}
    sums, sums_back = _sums(layers, samples, loads, spare, spare_back)
    forward = _with_sums(forward, "AT_SUMS", sums)
    backward = [_with_sums(places, "BACK_SUMS", sums_back) for places in backward]
    ends_there = _ends_there(layers)
    for places in backward:
        places["AT_DELTA"] = places["AT_VECTORS"] if ends_there else 0
    step = {**backward[False], **forward}
    step["SHARED"] = max(forward["SHARED"], backward[False]["SHARED"])
    step["AT_LOSSES"] = 0 if ends_there else forward["AT_VECTORS"]
    return Plan(
        layers, division,
        {**texts, "WANTS_DX": 0, **forward},
        tuple({**texts, "WANTS_DX": it, **places} for it, places in enumerate(backward)),
        {**texts, "WANTS_DX": 0, **step},
    )  # fmt: skip


@lru_cache(256)
def by_rule(
    layers: tuple[Layer, ...], n: int, itemsize: int, loads: tuple[int, ...]
) -> Division | None:
    """`THREADS` for the most samples a block that fit into shared memory; None if none does.

    Each multiprocessor has a block, if there are as many samples. Where there are more blocks, two
    run on a multiprocessor at a time, with half of the registers each.
    """
    for samples in range(min(blocks(n, PROCESSORS), MOST_SAMPLES), 0, -1):
        resident = 2 if blocks(n, samples) > PROCESSORS else 1
        division = Division(THREADS, samples, resident)
        if plan(layers, itemsize, loads, division) is not None:
            return division
    return None


def is_possible(numbers: tuple[int, ...]) -> bool:
    """Whether the numbers of a `Division` are within the kernels' limits."""
    if len(numbers) != 3:
        return False
    threads, samples, resident = numbers
    fits = 0 < threads * resident <= MOST_THREADS and threads <= MOST_THREADS // 2
    return fits and threads % WARP == 0 and 0 < samples <= MOST_SAMPLES


def forward_arrays(layers: Sequence[Layer], samples: int) -> Iterator[tuple[str, int]]:
    """Names and sizes of the arrays in shared memory, but for teams' sums."""
    images, linear = _split(layers)
    yield from _vectors(linear, samples)
    yield "AT_KERNELS", sum(it.kernels for it in images if isinstance(it, Convolution))
    yield "AT_IMAGES", max((layer.inputs for layer in images[::2]), default=0)
    yield "AT_OTHERS", max((layer.inputs for layer in images[1::2]), default=0)


def backward_arrays(
    layers: Sequence[Layer], samples: int, wants_dx: bool, itemsize: int
) -> Iterator[tuple[str, int]]:
    """The same for the backward."""
    images, linear = _split(layers)
    convolutions = {k: it for k, it in enumerate(images) if isinstance(it, Convolution)}
    into = [it.inputs if k or wants_dx or k in convolutions else 0 for k, it in enumerate(images)]
    kept = max((layer.outputs for layer in images if layer.has_places), default=0)
    yield from _vectors(linear, samples)
    yield "BACK_KERNELS", sum(it.kernels_back for k, it in convolutions.items() if k or wants_dx)
    yield "BACK_IMAGES", max(into[::2], default=0)
    yield "BACK_OTHERS", max(into[1::2], default=0)
    yield "BACK_PLACES", blocks(kept, itemsize)


def _sums(
    layers: Sequence[Layer], samples: int, loads: Sequence[int], spare: int, spare_back: int
) -> tuple[int, int]:
    """Numbers of teams' sums, in the forward and in the backward."""
    sums, sums_back = [0], [0]
    for layer, load in zip(layers, loads, strict=True):
        if isinstance(layer, Convolution):
            (_, y), (_, dx), (_, dw) = layer.teams(spare, spare_back)
            sums.append(y)
            sums_back += [dx, dw]
        elif isinstance(layer, Linear):
            sums_back.append(layer.teams(samples, load, spare_back)[1])
    return max(sums), max(sums_back)


def _texts(
    layers: Sequence[Layer], samples: int, loads: Sequence[int], spare: int, spare_back: int
) -> dict[str, Any]:
    """Layers as types, and sizes."""
    images, linear = _split(layers)
    of_images = [
        it.text(spare, spare_back) if isinstance(it, Convolution) else it.text() for it in images
    ]
    of_vectors = [
        layer.text(samples, load, spare_back)
        for layer, load in zip(linear, loads[len(images) :], strict=True)
    ]
    return {
        "IMAGES": ",".join(of_images), "VECTORS": ",".join(of_vectors),
        "INPUTS": layers[0].inputs, "FLAT": linear[0].inputs, "OUTPUTS": linear[-1].outputs,
    }  # fmt: skip


def _split(layers: Sequence[Layer]) -> tuple[list[Convolution | Pooling], list[Linear]]:
    """The layers on images, and those on vectors."""
    images = [layer for layer in layers if not isinstance(layer, Linear)]
    return images, [layer for layer in layers if isinstance(layer, Linear)]


def _vectors(linear: Sequence[Linear], samples: int) -> Iterator[tuple[str, int]]:
    """The two places of vectors, which inputs and outputs of the layers take in turn."""
    sizes = [linear[0].inputs, *(layer.outputs for layer in linear)]
    yield "", samples * max(sizes[::2])
    yield "AT_VECTORS", samples * max(sizes[1::2])


def _places(*arrays: tuple[str, int]) -> dict[str, int]:
    """Where each array begins, and the sum of their sizes, in whole loads of 16 bytes."""
    found, at = dict[str, int](), 0
    for name, size in arrays:
        if name:
            found[name] = at
        at += whole_loads(size)
    return {**found, "SHARED": at}


def _with_sums(places: dict[str, int], name: str, sums: int) -> dict[str, int]:
    """Places, with that of teams' sums at the end."""
    return {**places, name: places["SHARED"], "SHARED": places["SHARED"] + sums}


def _ends_there(layers: Sequence[Layer]) -> bool:
    """Whether the last layer's output takes the second place of vectors."""
    return sum(isinstance(layer, Linear) for layer in layers) % 2 == 1
