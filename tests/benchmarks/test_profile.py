"""``python -m benchmarks.profile_steps``: the kernels of a step, and their arithmetic."""

import subprocess
import sys

import pytest

from xbp.accelerators.cpu import native
from xbp.benchmarks.workloads import flop

CODE = """
from benchmarks import profile_steps
clock = profile_steps.Clock()
step = profile_steps.steps_of({name!r}, {batch})
clock.on = True
step()
_, calls = clock.take()
print(sum(2 * count * clock.products.get(key, 0) for key, count in calls.items()))
profile_steps.profile({name!r}, {batch}, clock, 0.0, True, 1e9)
"""


@pytest.mark.skipif(native.library() is None, reason="no kernels were compiled")
def test_the_kernels_of_a_step_make_all_its_multiplications():
    """Those that `xbp bench` counts from the network alone."""
    code = CODE.format(name="lenet5-train", batch=32)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    counted, *table = done.stdout.splitlines()
    assert int(counted) == flop("train", ["lenet5"], 32)
    parts = [line.split("|")[1:-1] for line in table if line.startswith("| `")]
    assert {row[0].split("`")[1] for row in parts} >= {"convolve", "convolve_backward", "affine"}
    assert any("32 × 1 × 28 × 28, 6 kernels 5 × 5, without ∂L/∂x" in row[0] for row in parts)
    assert all(float(row[2]) > 0 for row in parts)
