"""How the tests run benchmarks: quickly."""

import importlib.util
from pathlib import Path

import xbp
from xbp.benchmarks.options import Options

ROOT = Path(xbp.__file__).parents[1]
SIDE_XBP = ROOT / "xbp" / "benchmarks" / "side_xbp.py"
INSTALLED = [
    name
    for name, module in (("torch", "torch"), ("sklearn", "sklearn"), ("jax", "jax"))
    if importlib.util.find_spec(module)
]


def quick(**options):
    chosen = {"backend": "numpy", "device": None, "threads": 1, "tf32": False, "rounds": None}
    return Options(**chosen | {"batches": (), "quick": True} | options)
