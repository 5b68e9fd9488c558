"""The example project: its tests pass wherever xbp is installed, and fail if it is broken."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from nightly import NIGHTLY
from processes import ROOT, run_pytest

PROJECT = ROOT / "examples" / "own_layer"
TWO = "--xbp-backends=numpy,array_api_strict"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    pytest.importorskip("array_api_strict")
    ignored = shutil.ignore_patterns("__pycache__", ".pytest_cache")
    return Path(shutil.copytree(PROJECT, tmp_path / "own_layer", ignore=ignored))


@pytest.mark.parametrize("mode", ["prepend", "importlib", *(["append"] if NIGHTLY else [])])
def test_it_passes_on_two_backends(project: Path, mode: str) -> None:
    done = run_pytest(project, TWO, "-Werror", f"--import-mode={mode}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "array_api_strict: 7 ran\nnumpy: 7 ran\n" in done.stdout
    assert "skipped" not in done.stdout


GRADIENT = "::test_every_gradient_is_the_numeric_one "
LOSS_GRADIENT = "::test_the_gradient_is_the_numeric_one "
STRICT = "::test_it_agrees_with_numpy[array_api_strict] "


@pytest.mark.parametrize(
    ("file", "right", "wrong", "expected"),
    [
        ("layer", " * (1 - g)", "", GRADIENT),
        ("layer", "d_both.T @ x", "0.999 * d_both.T @ x", GRADIENT),
        ("layer", "return d_both @ W", "return -d_both @ W", GRADIENT),
        ("layer", "return d_both @ W", "return d_both @ W * float(dy[0, 0] == dy[0, 0])", STRICT),
        ("loss", "> 0, 0.5, below", "> 0, 1.0, below", LOSS_GRADIENT),
    ],
)
def test_it_fails_when_a_backward_is_broken(
    project: Path, file: str, right: str, wrong: str, expected: str
) -> None:
    path = project / "gated" / f"{file}.py"
    source = path.read_text(encoding="utf-8")
    assert source.count(right) == 1
    path.write_text(source.replace(right, wrong), encoding="utf-8")
    done = run_pytest(project, TWO, "-rf", "-k", "numeric or agrees", f"tests/test_{file}.py")
    assert done.returncode == pytest.ExitCode.TESTS_FAILED
    failures = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
    assert any(expected in line for line in failures), done.stdout
