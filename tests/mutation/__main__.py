"""The command line; see the package's docstring."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

for _path in (Path(__file__).parents[2], Path(__file__).parents[1]):
    sys.path.insert(0, str(_path))
sys.path = [path for path in sys.path if Path(path) != Path(__file__).parent]
# One thread a process: there is one process a core.
os.environ |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
os.environ["XBP_NUM_THREADS"] = "2"  # so that the kernels' own threads are at work

if __name__ == "__main__":
    from mutation.campaign import main

    sys.exit(main(argparse.ArgumentParser(prog="python tests/mutation")))
