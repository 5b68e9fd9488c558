"""Versions and the device of a backend, as JSON; names of files.

This is a process of its own, as a process that uses a GPU holds some of its memory until the end.
"""

from __future__ import annotations

import json
import re
import sys

from xbp.benchmarks.workloads import on_gpu
from xbp.machine import facts_of, surroundings


def file_stem(backend: str, facts: dict[str, str], quick: bool = False) -> str:
    """The common beginning of all file names.

    >>> file_stem("cupy", {"device": "NVIDIA H200, compute capability 9.0, 140 GiB"})
    'gpu_nvidia_h200'
    >>> file_stem("numpy", {"device": "cpu"}, quick=True)
    'trial_numpy_quick'
    """
    device = re.sub(r"[^a-z0-9]+", "_", facts["device"].partition(",")[0].lower()).strip("_")
    name = f"gpu_{device}" if on_gpu(backend) else f"trial_{backend}"
    return name + "_quick" * quick


def main() -> None:
    print(json.dumps(facts_of(sys.argv[1]) | surroundings()))


if __name__ == "__main__":
    main()
