"""A set ten times larger than the memory allowed trains from its files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

resource = pytest.importorskip("resource", reason="limits of memory are POSIX")

TRAIN = """
import resource, sys
import numpy as np
import xbp
from xbp import data, nn, optim

model = nn.Sequential(nn.Linear(1000, 3, rng=0))
trainer = xbp.Trainer(model, nn.CrossEntropyLoss(), optim.SGD(model.parameters(), 0.01), rng=0)
warm = np.zeros((64, 1000), np.float32), np.zeros(64, np.int64)
trainer.fit(data.Arrays(*warm), verbose=False)  # threads, libraries: all that is made once
x, y = sys.argv[1:3]
source = data.Files(x, y)
size = source.parts[0].shape[0] * source.parts[0].record

with open("/proc/self/statm") as file:
    used = int(file.read().split()[0]) * resource.getpagesize()
allowed = size // 10
resource.setrlimit(resource.RLIMIT_AS, (used + allowed, used + allowed))
try:
    np.load(x)
except MemoryError:
    print("as a whole it does not fit")
try:
    np.load(x, mmap_mode="r")
except OSError:
    print("nor does a map of it")
history = trainer.fit(source, batch_size=64, verbose=False)
print(trainer.optimizer.steps - 2, "steps,", trainer.evaluate(source)["loss"] < 1.2)
print(len(trainer.predict(source)), "outputs")
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="asks Linux what is used")
def test_a_set_ten_times_larger_than_the_memory_allowed(tmp_path: Path) -> None:
    rows = 64 * 800  # 205 MB; the limit is 20 MB beyond the interpreter's memory
    y = np.arange(rows) % 3
    x = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", "float32", (rows, 1000))
    for start in range(0, rows, 3200):
        x[start : start + 3200, :3] = np.eye(3)[y[start : start + 3200]]
    del x
    np.save(tmp_path / "y.npy", y)
    done = subprocess.run(
        [sys.executable, "-c", TRAIN, str(tmp_path / "x.npy"), str(tmp_path / "y.npy")],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "as a whole it does not fit",
        "nor does a map of it",
        "800 steps, True",
        f"{rows} outputs",
    ]
