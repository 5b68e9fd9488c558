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


def main() -> int:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pins = [f"{name}=={version}" for name, version in lowest(project).items()]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment["SCIPY_ARRAY_API"] = "1"  # scikit-learn 1.6's checks want it with a newer scipy
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        venv.create(folder / "venv", with_pip=True)
        python = folder / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
        (folder / "lowest.txt").write_text("\n".join(pins) + "\n")
        xbp, run = ("-m", "xbp"), ("--output", "run")
        tests = ("-q", "-p", "no:cacheprovider", "-o", "filterwarnings=ignore", "-k", LEFT_OUT)
        for where, *command in (
            (folder, "-m", "pip", "install", "-q", "--disable-pip-version-check",
             "-c", "lowest.txt", f"{ROOT}[{','.join(EXTRAS)}]"),
            (folder, "-m", "pip", "check"),
            (folder, "-c", IMPORT_ALL),
            (folder, *xbp, "info"),
            (folder, *xbp, "--help"),
            *((folder, *xbp, *words, "--help") for words in (
                ["train", "lenet5"], ["bench"], ["export"], ["parity"], ["predict"], ["report"]
            )),
            (folder, *xbp, "train", "lenet5", "--limit", "640", "--epochs", "1", "--report", *run),
            (folder, *xbp, "export", "run", "--onnx", "lenet5.onnx"),
            (folder, *xbp, "parity", "--only", "Tanh", "--backend", "array_api_strict"),
            (ROOT, "-m", "pytest", *tests, *TESTS),
        ):  # fmt: skip
            sys.stdout.write(f"+ python {' '.join(map(str, command))[:100].strip()}\n")
            sys.stdout.flush()
            done = subprocess.run(
                [python, *command], cwd=where, env=environment, check=False,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            )  # fmt: skip
            if done.returncode:
                sys.stdout.write(f"{done.stdout}\nwith {', '.join(pins)}\n")
                return 1
    sys.stdout.write(f"passed with {', '.join(pins)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
