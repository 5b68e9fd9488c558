"""Memory that runs out on purpose: the n-th allocation of each kernel fails.

    python tests/faults/memory.py

compiles the kernels with an allocator that counts its blocks and can refuse one. For every kernel
that needs a workspace, with one thread and with three, and for n = 1, 2, 3, … until the call
succeeds, the n-th allocation of a forward, and of forward and backward, fails, in a process of its
own. Then the call must raise `MemoryError` with one sentence; repeated, it must give the right
results, bit for bit; and it must hold as many blocks as after a call without a fault: of several
threads each keeps one, once it has worked, and which of them work depends on what else runs. Last,
`fit` and `predict` of a LeNet-5 must raise `xbp.errors.OutOfMemoryError`, or give the results of a
run without a fault. Prints a table. Exit status 1 if any of this fails.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

HERE, ROOT = Path(__file__).parent, Path(__file__).parents[2]
sys.path[0] = str(ROOT)
MOST = 1000
Call = Callable[[], list[NDArray[Any]]]


def library(folder: Path) -> Path:
    """The kernels with the allocator of memory.c."""
    from xbp.accelerators.cpu import build, native

    cc, level = build.compiler(), native.status()
    assert cc is not None, "no C compiler was found"
    flags = build.levels()[level]
    path = build.library_path(level, folder)
    line = build.command(cc, path, flags, is_clang=build.is_clang(cc))
    line = ["-O1" if option == "-O3" else option for option in line]
    renamed = [f"-D{name}=counted_{name}" for name in ("malloc", "aligned_alloc", "free")]
    allocator = folder / "memory.o"
    subprocess.run([cc, "-O1", "-fPIC", "-c", HERE / "memory.c", "-o", allocator], check=True)
    subprocess.run([*line, *renamed, str(allocator)], check=True)
    return path


def calls() -> dict[str, Call]:
    """Every kernel with a workspace, forward and backward."""
    from xbp.accelerators.cpu import affine, convolution, dense, recurrence
    from xbp.primitives import cells

    draw = np.random.default_rng(0)

    def numbers(*shape: int) -> NDArray[np.float32]:
        return draw.normal(size=shape).astype(np.float32)

    def both(function: Callable[..., Any], *arrays: NDArray[Any], **options: Any) -> Call:
        slope = numbers(*function(*arrays, **options)[0].shape)

        def call() -> list[NDArray[Any]]:
            y, gradients = function(*arrays, **options)
            return [y, *(found for found in gradients(slope) if found is not None)]

        return call

    def recurrent() -> list[NDArray[Any]]:
        (h, last), gradients = recurrence.recurrence(*layer, step=cells.lstm)
        dx, dstates, *others = gradients(slopes, last)
        return [h, *last, dx, *dstates, *others]

    layer = (numbers(30, 40, 20), numbers(80, 20), numbers(80, 20), numbers(80), numbers(80),
             numbers(40, 20), numbers(40, 20))  # fmt: skip
    slopes, window = numbers(30, 40, 20), {"kernel_size": (2, 2), "stride": (2, 2)}
    images, weight, bias = numbers(70, 8, 12, 12), numbers(9, 8, 3, 3), numbers(9)
    innermost = numbers(6, 8, 6, 70).transpose(3, 1, 0, 2)
    pair = numbers(20, 30), numbers(20), numbers(10, 20), numbers(10)
    return {
        "convolution": both(convolution.convolve, images, numbers(9, 8, 5, 5), bias),
        "Winograd's products": both(convolution.convolve, images, weight, bias, padding=(1, 1)),
        "ReLU and pooling": both(
            convolution.convolve, images, weight, bias, relu=True, pool=(2, 2)
        ),
        "maximum pooling": both(convolution.max_pool, images, **window),
        "average pooling": both(convolution.average_pool, images, **window),
        "flatten": both(convolution.flatten, innermost),
        "linear": both(affine.affine, numbers(64, 300), numbers(40, 300), numbers(40), relu=True),
        "dense layers": both(dense.dense, numbers(300, 30), *pair, activations=("tanh", None)),
        "LSTM": recurrent,
    }


class Memory:
    """The allocator in the library."""

    def __init__(self, path: Path) -> None:
        self.loaded = ctypes.CDLL(str(path))
        self.loaded.memory_blocks.restype = ctypes.c_long

    def refuse(self, n: int) -> None:
        self.loaded.memory_refuse(ctypes.c_long(n))

    def refused(self) -> bool:
        return bool(self.loaded.memory_refused())

    def blocks(self) -> int:
        return int(self.loaded.memory_blocks())


def apart(work: Callable[[], Any]) -> Any:
    """The result of `work` in a forked process."""
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(ours)
        try:
            answer = work()
        except BaseException as error:
            answer = f"{type(error).__name__}: {error}"
        os.write(theirs, json.dumps(answer).encode())
        os._exit(0)
    os.close(theirs)
    with os.fdopen(ours, "rb") as pipe:
        said = pipe.read()
    status = os.waitpid(child, 0)[1]
    return json.loads(said) if status == 0 else f"ended with status {status}"


def digest(results: list[NDArray[Any]]) -> str:
    import hashlib

    found = hashlib.sha256()
    for result in results:
        found.update(np.ascontiguousarray(result).tobytes())
    return found.hexdigest()


def one(memory: Memory, call: Call, n: int) -> dict[str, Any]:
    """A call whose n-th allocation fails, and the same call again."""
    memory.refuse(n)
    sentence = ""
    try:
        call()
    except MemoryError as error:
        sentence = str(error)
    failed = memory.refused()
    memory.refuse(0)
    again = digest(call())
    return {"failed": failed, "said": sentence, "again": again, "blocks": memory.blocks()}


def trials(memory: Memory, call: Call, threads: int) -> tuple[int, str]:
    """The number of allocations that were refused one by one, and what was wrong, if anything."""
    right = apart(lambda: one(memory, call, 0))

    def is_right(found: dict[str, Any]) -> bool:
        blocks = range(threads + 1) if threads > 1 else [right["blocks"]]
        return found["again"] == right["again"] and found["blocks"] in blocks

    for n in range(1, MOST):
        found = apart(lambda n=n: one(memory, call, n))
        if not isinstance(found, dict):
            return n, f"at allocation {n}: {found}"
        if not found["failed"]:  # there are fewer
            return n - 1, "" if is_right(found) else f"other results or blocks: {found} {right}"
        if not found["said"] or "\n" in found["said"]:
            return n, f"at allocation {n}: it said {found['said']!r}"
        if not is_right(found):
            return n, f"after allocation {n}: {found}, not {right}"
    return MOST, "it never succeeded"


def trained(memory: Memory, what: str, n: int) -> dict[str, Any]:
    """`fit` or `predict` of a LeNet-5 whose n-th allocation fails."""
    import xbp
    from xbp import nn, optim
    from xbp.errors import OutOfMemoryError

    model = xbp.models.LeNet5(rng=0)
    trainer = xbp.Trainer(model, nn.CrossEntropyLoss(), optim.SGD(model.parameters(), 0.1), rng=0)
    x = np.zeros((64, 1, 28, 28), np.float32)
    memory.refuse(n)
    said = result = ""
    try:
        if what == "fit":
            trainer.fit(x, np.zeros(64, np.int64), 1, 32, verbose=False)
            result = digest([parameter.data for parameter in model.parameters()])
        else:
            result = digest([trainer.predict(x)])
    except OutOfMemoryError as error:
        said = str(error)
    return {"failed": memory.refused(), "said": said, "result": result}


def trainings(memory: Memory, what: str) -> tuple[int, int, str]:
    """As `trials`, and how many were done all the same: a recording is given up for eager steps."""
    right, done = apart(lambda: trained(memory, what, 0)), 0
    for n in range(1, MOST):
        found = apart(lambda n=n: trained(memory, what, n))
        if not isinstance(found, dict) or found["result"] not in ("", right["result"]):
            return n, done, f"at allocation {n}: {found}"
        if not found["failed"]:
            return n - 1, done, ""
        done += not found["said"]
    return MOST, done, "it never succeeded"


def main() -> int:
    from xbp.accelerators.cpu import native

    bad = 0
    with tempfile.TemporaryDirectory() as name:
        path = library(Path(name))
        native.library_path = lambda level: path
        native._load.cache_clear()
        native.library.cache_clear()
        memory = Memory(path)
        sys.stdout.write(f"{'kernel':22}{'threads':>8}{'refused':>9}{'done':>6}\n")
        for threads in (1, 3):
            native.threads = lambda threads=threads: threads
            for kernel in apart(lambda: list(calls())):
                count, wrong = trials(memory, lambda kernel=kernel: calls()[kernel](), threads)
                bad += bool(wrong)
                sys.stdout.write(f"{kernel:22}{threads:>8}{count:>9}{'':6} {wrong}\n")
            for what in ("fit", "predict"):
                count, done, wrong = trainings(memory, what)
                bad += bool(wrong)
                sys.stdout.write(f"{what:22}{threads:>8}{count:>9}{done:>6} {wrong}\n")
                sys.stdout.flush()
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
