"""Mutation of the CUDA kernels: faults, planted one at a time, that the tests should notice.

    python tests/accelerators/emulation                      every fault; an hour or two
    python tests/accelerators/emulation --sample 60 pool     60 at random, with "pool" in the name

The faults are those of `tests/mutation` in C, in the text of the .cu files; the tests are those of
the emulation. Prints the faults that no test notices.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
from pathlib import Path

TESTS = Path(__file__).parents[2]
sys.path = [path for path in sys.path if Path(path) != Path(__file__).parent]
sys.path[:0] = [str(TESTS.parent), str(TESTS)]
NOT_COMPILED = 3
ABOUT = {  # the tests that use a file
    "convolution": "convol or memory_order or constants",
    "pooling": "pool",
    "passes": "update or parameters or scaled or average or step or conv",
    "activations": "activation or rectify or wide",
    "batch_norm": "batch_norm or running_statistics",
    "layer_norm": "layer_norm or group_norm",
    "softmax": "softmax or attention",
    "embedding": "embedding or rows_that_share or rows_without",
    "cross_entropy": "entropy or label or infinity or overflow",
    "philox": "random_bits",
    "product": "matmul or affine or product or tile",
    "rows": "rows or gather or row",
    "short": "kernels_reduced",
    **dict.fromkeys(("recurrence", "recurrence_backward"), "recurrence"),
    **dict.fromkeys(("attention_forward", "attention_backward"), "kernels_attention"),
    **dict.fromkeys(("wide", "wide_to_input", "wide_to_weight"), "every_tile"),
    **dict.fromkeys(("winograd", "winograd_to_weight"), "winograd"),
    **dict.fromkeys(("whole_forward", "whole_backward", "whole_weights"), "networks or division"),
    "whole_step": "steps or finite or label",
}
TWINS = [("KH", "KW"), ("H", "W"), ("ROWS", "COLUMNS"), ("REACH_H", "REACH_W"), ("C", "O")]
TWINS += [(f"{name}_H", f"{name}_W") for name in ("STRIDE", "PAD", "POOL", "PATCH")]


def run(file: str, text: str) -> int:
    """The exit status of the tests with a broken file."""
    import pytest
    from accelerators.emulation import machine

    from xbp.accelerators.cuda import launch

    launch.source = lambda name, whole=launch.source: text if name == file else whole(name)
    compiled = machine.library

    def library(program: str) -> object:
        try:
            return compiled(program)
        except RuntimeError:
            os._exit(NOT_COMPILED)

    machine.library = library  # type: ignore[assignment]
    signal.alarm(240)  # a hang counts as noticed
    which = f"({ABOUT[file.partition('.')[0]]}) or race or beyond"
    options = ["-x", "-qq", "--no-header", "-p", "no:cacheprovider", "--tb=no", "-k", which]
    return int(pytest.main([*options, str(TESTS / "accelerators" / "kernels")]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="only faults with one of these in their names")
    parser.add_argument("--sample", type=int, default=0, help="only so many, drawn at random")
    parser.add_argument("--seed", type=int, default=0, help="which ones")
    options = parser.parse_args()
    from accelerators.emulation import machine
    from mutation import kernels

    from xbp.accelerators.cuda import launch

    kernels.TWINS[:] = TWINS
    folder = Path(launch.__file__).parent
    texts = {path.name: launch.source(path.name) for path in sorted(folder.glob("*.cu"))}
    assert {Path(file).stem for file in texts} <= set(ABOUT)
    faults = [fault for file in texts for fault in kernels.kernel_faults(file, texts[file])]
    named = options.names or [""]
    faults = [fault for fault in faults if any(name in str(fault) for name in named)]
    if options.sample:
        faults = random.Random(options.seed).sample(faults, min(options.sample, len(faults)))
    machine.MEMORY = machine.MEMORY.with_name(f"{machine.MEMORY.name}-broken")
    caught = planted = 0
    for fault in faults:
        child = os.fork()
        if not child:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(1, 2)
            os._exit(run(fault.file, fault.planted(texts[fault.file])))
        status = os.waitstatus_to_exitcode(os.wait()[1])
        planted += status != NOT_COMPILED
        caught += status not in (0, NOT_COMPILED)
        if status == 0:
            print(f"not caught: {fault}", flush=True)  # noqa: T201
    for library in machine.MEMORY.glob("*"):
        library.unlink()
    print(f"{caught} of {planted} faults caught")  # noqa: T201
    return int(caught < planted)


if __name__ == "__main__":
    sys.exit(main())
