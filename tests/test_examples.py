"""Every example runs, shortened where it is long."""

import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"

RUNS = {
    "lenet5_mnist.py": (
        ["--limit", "2560", "--epochs", "1", "--batch-size", "32"],
        "test accuracy",
    ),
    "custom_layer.py": ([], "equal numpy's"),
    "worked_2_2_2.py": (["--steps", "100", "--backend", "array_api_strict"], "0.291027774"),
    "x_plus_2y.py": ([], "fell below 1e-6"),
    "xor.py": (["--seeds", "2"], "2-4-1: all four patterns right for 2 of 2 seeds"),
}


@cache
def run(name: str, *options: str) -> str:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *options],
        capture_output=True,
        text=True,
        check=False,
        cwd=EXAMPLES.parent,
        env={"PYTHONPATH": str(EXAMPLES.parent), "PATH": "", "PYTHONIOENCODING": "utf-8"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_example_is_run_here() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(RUNS)


@pytest.mark.parametrize("name", RUNS)
def test_runs(name: str) -> None:
    options, expected = RUNS[name]
    assert expected in run(name, *options)


def test_lenet5_learns_from_a_few_images() -> None:
    """80 steps of batch 32 take it to about 90 %; 10 % is chance."""
    output = run("lenet5_mnist.py", *RUNS["lenet5_mnist.py"][0])
    assert float(output.rpartition("test accuracy ")[2].strip().rstrip("%")) > 75


def test_the_explicit_loop_fits_on_a_screen() -> None:
    assert len((EXAMPLES / "lenet5_mnist.py").read_text(encoding="utf-8").splitlines()) < 60
