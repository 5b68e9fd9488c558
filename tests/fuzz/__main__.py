"""The command line; see the docstring of the package."""

from __future__ import annotations

import argparse
import os
import sys
from importlib import import_module
from pathlib import Path

for _path in (Path(__file__).parents[2], Path(__file__).parents[1]):
    sys.path.insert(0, str(_path))
sys.path = [path for path in sys.path if Path(path) != Path(__file__).parent]
os.environ |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}  # threads take address space

if __name__ == "__main__":
    chosen = sys.argv.pop(1) if sys.argv[1:2] in (["differential"], ["guided"]) else "run"
    main = import_module(f"fuzz.{chosen}").main
    sys.exit(main(argparse.ArgumentParser(prog="python tests/fuzz")))
