"""The newest versions of all packages, in an environment of their own, for any Python.

    python tests/newest.py
    python tests/newest.py --python python3.14     # or a free-threaded one: python3.14t
    python tests/newest.py --suite                 # the whole suite, not a quick part of it

makes an environment with that interpreter, and installs xbp there with the newest version of each
package, from its wheels alone; extras without a wheel for this interpreter are left out, and named.
Then it does what `tests/lowest.py` does with the lowest versions. Trainings at once in four
threads, eager and recorded, and predictions with one model must have the bits of a single thread;
with a free-threaded interpreter the global interpreter lock must stay off meanwhile. Exit status 1
if something fails.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import lowest
from lowest import EXTRAS, ROOT

THREADS = """
import sys, sysconfig, threading
import numpy as np
import xbp
from xbp import nn, optim

draw = np.random.default_rng(0)
x = draw.normal(size=(96, 1, 28, 28)).astype(np.float32)
labels, shared = draw.integers(0, 10, 96), xbp.models.LeNet5(rng=1)

def fitted(model, x, capture):
    optimizer = optim.Adam(model.parameters(), 1e-3)
    trainer = xbp.Trainer(model, nn.CrossEntropyLoss(), optimizer, rng=0, capture=capture)
    trainer.fit(x, labels, 4, 32, verbose=False)
    return b"".join(np.asarray(p.data).tobytes() for p in model.parameters())

def train():
    convolutions = fitted(xbp.models.LeNet5(rng=0), x, False)
    recorded = fitted(xbp.models.MLP(784, 32, 10, rng=0), x.reshape(96, -1), True)
    return convolutions + recorded + shared(x).tobytes()

alone, found = train(), [None] * 4
def one(i):
    found[i] = train()
threads = [threading.Thread(target=one, args=(i,)) for i in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert found == [alone] * 4, "other bits"
if sysconfig.get_config_var("Py_GIL_DISABLED"):
    assert not sys._is_gil_enabled(), "an extension has enabled the lock"
"""


def installed(python: Path, folder: Path) -> list[str]:
    """Install xbp and each extra that has wheels for this interpreter; the extras left out."""
    pip = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    wheels = [*pip, "--only-binary=:all:", "--no-binary=xbackprop"]
    subprocess.run([*pip, "--upgrade", "pip"], check=True, cwd=folder)
    left = []
    for extra in ("", *EXTRAS):
        wanted = f"xbackprop[{extra}]" if extra else str(ROOT)  # built once, then at hand
        if subprocess.run([*wheels, wanted], check=False, cwd=folder).returncode:
            if not extra:
                sys.stdout.write("xbp's own dependencies lack a wheel: only numpy's is wanted\n")
                subprocess.run([*pip, "--no-deps", str(ROOT)], check=True, cwd=folder)
                needed = ["numpy", "array-api-compat", "rich", "typer", "pytest", "hypothesis"]
                subprocess.run([*pip, "--only-binary=:all:", *needed], check=True, cwd=folder)
            left.append(extra or "safetensors")
    return left


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--python", default=sys.executable, help="the interpreter")
    parser.add_argument("--suite", action="store_true", help="run the whole suite of tests")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        subprocess.run([chosen.python, "-m", "venv", str(folder / "venv")], check=True)
        python = lowest.python_of(folder / "venv")
        left = installed(python, folder)
        if left:
            sys.stdout.write(f"left out, without a wheel: {', '.join(left)}\n")
        steps = [(folder, "-c", THREADS), *lowest.steps(folder, extras=not left)]
        if chosen.suite:
            steps[-1] = (ROOT, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "1")
        done = lowest.run(python, steps)
        versions = subprocess.run(
            [python, "-m", "pip", "freeze", "--exclude", "xbackprop"],
            capture_output=True, text=True, check=True,
        ).stdout.split()  # fmt: skip
        kind = subprocess.run([python, "-VV"], capture_output=True, text=True, check=True).stdout
    about = f"{kind.partition(' (')[0]} with {', '.join(sorted(versions))}"
    sys.stdout.write(f"{'passed' if done else 'FAILED'}: {about}\n")
    return int(not done)


if __name__ == "__main__":
    sys.exit(main())
