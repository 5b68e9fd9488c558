"""The lowest versions that pyproject.toml admits, in an environment of their own.

    python tests/lowest.py

makes an environment, and installs xbp there with the lowest version of every package that its
dependencies and extras name. Then every module must be importable, every command must answer, a
training must be trained, drawn, reported and exported, and a quick part of the tests must pass. It
takes about three minutes, mostly for downloads and builds. Exit status 1 if something fails: then a
version in pyproject.toml is too low, or xbp uses something newer.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import tomllib
import venv
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
EXTRAS = ("plot", "report", "images", "sklearn", "tensorboard", "onnx", "test")
TESTS = (
    "tests/nn/core",
    "tests/test_imports.py",
    "tests/test_random.py",
    "tests/estimators/test_estimators.py",
    "tests/training/files/test_files.py",
    "tests/training/callbacks/test_csv.py",
    "tests/training/callbacks/test_tensorboard.py",
    "tests/training/files/test_weights.py",
    "tests/testing/test_tolerances.py",
    "tests/datasets/test_mnist.py",
)
NEED_EXTRAS = (
    *("test_estimators.py", "test_files.py", "test_weights.py", "test_tensorboard.py"),
    "test_csv.py",
)
"""Also those that need safetensors, which lacks wheels for a free-threaded Python."""
LEFT_OUT = "not scikit_learns_own_checks"  # one minute
IMPORT_ALL = """
import importlib, pkgutil, xbp
for module in pkgutil.walk_packages(xbp.__path__, "xbp."):
    if not module.name.endswith("__main__") and "._kernels" not in module.name:
        try:
            importlib.import_module(module.name)
        except ModuleNotFoundError as error:  # the networks of a peer of the benchmarks
            if error.name not in ("torch", "jax"):
                raise
        except xbp.errors.BackendError as error:  # a module that needs PyTorch says so
            if "needs PyTorch" not in str(error):
                raise
"""


def lowest(project: dict[str, object]) -> dict[str, str]:
    """Each package of the dependencies and of `EXTRAS`, with the lowest version admitted.

    >>> lowest({"dependencies": ["numpy>=2.1"], "optional-dependencies": {"test": ["pip>=8"]}})
    {'numpy': '2.1', 'pip': '8'}
    """
    extras = project["optional-dependencies"]
    assert isinstance(extras, dict) and isinstance(project["dependencies"], list)
    wanted = [*project["dependencies"], *(one for name in EXTRAS for one in extras.get(name, ()))]
    found: dict[str, str] = {}
    for requirement in wanted:
        match = re.match(r"([\w.-]+)(?:\[[^]]*\])?\s*(?:>=|==)\s*([\w.]+)", requirement)
        if match is None:
            msg = f"{requirement!r} in pyproject.toml says no lowest version"
            raise SystemExit(msg)
        if found.setdefault(match[1], match[2]) != match[2]:
            msg = f"pyproject.toml names two lowest versions of {match[1]}"
            raise SystemExit(msg)
    return found


def python_of(environment: Path) -> Path:
    """The interpreter of a virtual environment."""
    return environment / ("Scripts" if os.name == "nt" else "bin") / "python"


Step = tuple[Any, ...]
"""A folder, and the arguments of Python."""


def steps(folder: Path, *, extras: bool = True) -> list[Step]:
    """What is done in an environment, in a new `folder`; without `extras`, what needs none."""
    xbp, output = ("-m", "xbp"), ("--output", "run")
    tests = ("-q", "-p", "no:cacheprovider", "-o", "filterwarnings=ignore", "-k", LEFT_OUT)
    helped = (["train", "lenet5"], ["bench"], ["export"], ["parity"], ["predict"], ["report"])
    train = ("train", "lenet5", "--limit", "640", "--epochs", "1")
    without = [
        (folder, *xbp, "info"),
        (folder, *xbp, "--help"),
        *((folder, *xbp, *words, "--help") for words in helped),
    ]
    if not extras:
        few = [name for name in TESTS if Path(name).name not in NEED_EXTRAS]
        return [*without, (ROOT, "-m", "pytest", *tests, *few)]
    return [
        (folder, "-m", "pip", "check"),
        (folder, "-c", IMPORT_ALL),
        *without,
        (folder, *xbp, *train, "--report", *output),
        (folder, *xbp, "export", "run", "--onnx", "lenet5.onnx"),
        (folder, *xbp, "parity", "--only", "Tanh", "--backend", "array_api_strict"),
        (ROOT, "-m", "pytest", *tests, *TESTS),
    ]


def run(python: Path, wanted: list[Step]) -> bool:
    """Do all steps, up to the first that fails; whether none did."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment["SCIPY_ARRAY_API"] = "1"  # scikit-learn 1.6's checks want it with a newer scipy
    for where, *command in wanted:
        sys.stdout.write(f"+ python {' '.join(' '.join(map(str, command)).split())[:100]}\n")
        sys.stdout.flush()
        done = subprocess.run(
            [python, *command], cwd=where, env=environment, check=False,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        if done.returncode:
            sys.stdout.write(f"{done.stdout}\n")
            return False
    return True


def main() -> int:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pins = [f"{name}=={version}" for name, version in lowest(project).items()]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        venv.create(folder / "venv", with_pip=True)
        (folder / "lowest.txt").write_text("\n".join(pins) + "\n")
        install = (folder, "-m", "pip", "install", "-q", "--disable-pip-version-check",
                   "-c", "lowest.txt", f"{ROOT}[{','.join(EXTRAS)}]")  # fmt: skip
        done = run(python_of(folder / "venv"), [install, *steps(folder)])
    sys.stdout.write(f"{'passed' if done else 'FAILED'} with {', '.join(pins)}\n")
    return int(not done)


if __name__ == "__main__":
    sys.exit(main())
