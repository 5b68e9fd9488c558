"""Mutated files, killed processes, failing system calls: a few of each in every run of the tests.

All of them are run by ``python tests/fuzz --cases 10000``, ``python tests/killed.py --runs
200``, and ``python tests/faults``.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="limits and SIGKILL are POSIX")


def run(*command: str) -> str:
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_mutated_files_are_refused_or_load() -> None:
    assert "500 files, no crash, no hang" in run("tests/fuzz", "--cases", "500")


def test_files_are_read_as_others_read_them() -> None:
    assert "200 files, no difference" in run("tests/fuzz", "differential", "--cases", "200")


def test_killed_runs_go_on_and_end_with_the_same_bits() -> None:
    assert "all ended with the same bits" in run("tests/killed.py", "--runs", "5")


@pytest.mark.skipif(sys.platform != "linux" or not shutil.which("cc"), reason="see tests/faults")
def test_a_system_call_that_fails_leaves_the_old_file_or_the_new_one() -> None:
    said = run("tests/faults", "--only", "weights, replaced")
    assert int(said.split()[-5]) > 50, said  # faults
