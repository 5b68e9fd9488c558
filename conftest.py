"""Plugins that the tests need: pytest's own for testing plugins, and that of xbp.

Where xbp is installed pytest has found xbp's by itself; this is for a checkout that is not.
"""

import os
from importlib.util import find_spec

pytest_plugins = ["pytester", "pytest_xbp"]

# Modules that import what is not installed here; there are no doctests in them.
NEEDED = {
    "ndonnx": ["xbp/exchange/*.py"],
    "torch": ["xbp/benchmarks/models_torch.py", "xbp/interop/torch.py"],
    "jax": ["xbp/benchmarks/models_jax.py"],
}
collect_ignore_glob = [
    path for name, paths in NEEDED.items() if not find_spec(name) for path in paths
]

# Workers of pytest-xdist share the cores; numpy and the kernels read these as they are loaded.
# Tests of the kernels' own threads choose their number; others only lose time to threads that spin.
if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):
    share = max(1, (os.cpu_count() or 1) // workers)
    for library in ("XBP", "OMP", "OPENBLAS", "MKL"):
        os.environ.setdefault(f"{library}_NUM_THREADS", str(share))
