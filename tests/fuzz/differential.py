"""Readers and the writer beside others of the same formats, on drawn and on mutated files.

    python tests/fuzz differential --cases 10000

Files with drawn arrays, as written by xbp, must be read by safetensors' own functions, and the
other way round, with the same names, shapes, dtypes and bits. Mutated files must be refused by both
sides or read as the same arrays: by `TensorFile` and safetensors, by `read_idx` and ten lines that
follow the format's description, by `read_cifar` and slices of the file. xbp may refuse more: what
numpy cannot hold, and what does not have its checksum. Exit status 1 with the case that differs.
"""

from __future__ import annotations

import argparse
import collections
import math
import random
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from fuzz import mutate
from xbp.datasets import read_cifar, read_idx
from xbp.errors import DataError
from xbp.training.files.tensors import DTYPES, TensorFile, write_tensors

Arrays = dict[str, NDArray[Any]]
IDX = {8: "u1", 9: "i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
RECORD = 1 + 3 * 32 * 32


def drawn(choose: random.Random) -> Arrays:
    """Arrays of any dtype and few entries, or none, in any memory order."""
    found: Arrays = {}
    for _ in range(choose.randrange(4)):
        shape = [choose.randrange(4) for _ in range(choose.randrange(4))]
        dtype = np.dtype(choose.choice(list(DTYPES.values())))
        content = choose.randbytes(math.prod(shape) * dtype.itemsize)
        array = np.frombuffer(content, "u1" if dtype.kind == "b" else dtype)
        array = (array % 2 == 1 if dtype.kind == "b" else array).reshape(shape)
        name = choose.choice(["", "weight", "σ.0", "layers.1.bias", '"', "\n", "a b"])
        found[name] = array.T if choose.random() < 0.5 else array
    return found


def same(a: Arrays, b: Arrays) -> bool:
    """Whether all names, dtypes, shapes and bits are equal."""
    return a.keys() == b.keys() and all(
        (a[k].dtype, a[k].shape, a[k].tobytes()) == (b[k].dtype, b[k].shape, b[k].tobytes())
        for k in a
    )


def both_ways(choose: random.Random, path: Path) -> str:
    """A drawn file of xbp read by safetensors, and one of safetensors read by xbp."""
    arrays = drawn(choose)
    write_tensors(path, arrays, {"any": [1, "ü"]})
    assert same(load(path.read_bytes()), arrays), "safetensors reads what xbp has not written"
    file = TensorFile(path)
    assert same(file.read(), arrays) and file.document == {"any": [1, "ü"]}, (
        "xbp reads its own wrongly"
    )
    path.write_bytes(save({name: np.array(array, order="C") for name, array in arrays.items()}))
    assert same(TensorFile(path).read(), arrays), "xbp reads what safetensors has not written"
    return "equal"


def tensors(content: bytes, path: Path) -> tuple[Arrays | None, Arrays | None]:
    """What safetensors reads, and xbp."""
    try:
        expected = load(content)
    except (SafetensorError, ValueError, KeyError, TypeError, MemoryError, OverflowError):
        expected = None
    return expected, ours(lambda: TensorFile(path).read())


def idx(content: bytes, path: Path) -> tuple[Arrays | None, Arrays | None]:
    """The same of an IDX file that is not compressed."""
    expected = None
    if len(content) >= 4 and content[:2] == b"\0\0" and content[2] in IDX and 0 < content[3] <= 64:
        start = 4 + 4 * content[3]
        shape = [int.from_bytes(content[at : at + 4], "big") for at in range(4, start, 4)]
        dtype = np.dtype(IDX[content[2]])
        if len(content) == start + math.prod(shape) * dtype.itemsize and len(content) >= start:
            try:
                array = np.frombuffer(content[start:], dtype).reshape(shape)
                expected = {"": array.astype(dtype.newbyteorder("="))}
            except ValueError:  # sizes that numpy cannot hold, beside a 0
                expected = None
    return expected, ours(lambda: {"": read_idx(path)})


def cifar(content: bytes, path: Path) -> tuple[Arrays | None, Arrays | None]:
    """The same of a file of CIFAR-10."""
    expected = None
    starts = range(0, len(content), RECORD)
    labels = np.array([[content[at]] for at in starts], np.uint8)
    if content and len(content) % RECORD == 0 and labels.max() < 10:
        pixels = [np.frombuffer(content[at + 1 : at + RECORD], np.uint8) for at in starts]
        expected = {"images": np.stack(pixels).reshape(-1, 3, 32, 32), "labels": labels}
    return expected, ours(lambda: dict(zip(("images", "labels"), read_cifar(path), strict=True)))


def ours(read: Callable[[], Arrays]) -> Arrays | None:
    try:
        return read()
    except DataError:
        return None


def seeds(choose: random.Random) -> dict[Any, bytes]:
    """A file of each format."""
    arrays = {"a": np.arange(12.0, dtype=np.float32).reshape(3, 4), "b": np.array(3, np.int64)}
    shape = b"".join(size.to_bytes(4, "big") for size in (2, 3, 2))
    records = b"".join(bytes([label]) + choose.randbytes(RECORD - 1) for label in (0, 9))
    return {tensors: save(arrays), idx: b"\0\0\x0b\x03" + shape + bytes(range(24)), cifar: records}


def mutated(choose: random.Random, path: Path) -> str:
    """A mutated file of one format, by both readers."""
    files = seeds(choose)
    read = choose.choice(list(files))
    content = mutate.bytes_(choose, files[read], list(files.values()))
    if (
        read is tensors and choose.random() < 0.5
    ):  # what lies before the first 100 bytes, the header
        content = mutate.bytes_(choose, files[read][:100], [files[idx]]) + files[read][100:]
    if content[:2] == b"\x1f\x8b":
        return "compressed"
    path.write_bytes(content)
    expected, found = read(content, path)
    if found is None:
        kind = "" if expected is None else "by xbp alone "
        return f"{read.__name__}: refused {kind}"
    assert expected is not None, f"{read.__name__}: xbp alone reads it"
    assert same(expected, found), f"{read.__name__}: it is read as something else"
    return f"{read.__name__}: equal"


def main(parser: argparse.ArgumentParser) -> int:
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    chosen, counts = parser.parse_args(), collections.Counter()
    with tempfile.TemporaryDirectory() as name:
        for number in range(chosen.cases):
            choose, path = random.Random(f"{chosen.seed} {number}"), Path(name, "case")
            check = both_ways if number % 4 == 0 else mutated
            try:
                counts[check(choose, path)] += 1
            except Exception as error:
                sys.stdout.write(f"case {number}: {type(error).__name__}: {error}\n")
                return 1
    sys.stdout.writelines(f"{outcome:32} {count:6}\n" for outcome, count in sorted(counts.items()))
    sys.stdout.write(f"{chosen.cases} files, no difference\n")
    return 0
