"""The test suite itself: it runs in any folder, and in several processes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter

import pytest
from nightly import NIGHTLY
from processes import ROOT, without_foreign_plugins

TESTS = ROOT / "tests"


def test_no_id_comes_twice(request: pytest.FixtureRequest) -> None:
    ids = [item.nodeid for item in request.session.items]
    assert [name for name, times in Counter(ids).items() if times > 1] == []


@pytest.mark.skipif(
    not NIGHTLY, reason="pytest-xdist compares the ids of its workers; nightly those of 2 processes"
)
def test_ids_are_the_same_in_every_process() -> None:
    """pytest-xdist needs stable ids, without addresses of objects or the order of a set.

    Each worker of pytest-xdist hashes with a seed of its own, and pytest-xdist refuses to run where
    their ids differ.
    """
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider"]
    processes = [
        subprocess.Popen(
            [*command, *without_foreign_plugins("hypothesispytest")],
            cwd=ROOT,
            env=os.environ | {"PYTHONHASHSEED": seed},
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in ("1", "2")
    ]
    first, second = (
        [line for line in process.communicate()[0].splitlines() if "::" in line]
        for process in processes
    )
    assert [process.returncode for process in processes] == [0, 0]
    assert len(first) == len(set(first)) > 1000
    assert first == second


def test_no_id_has_an_address(request: pytest.FixtureRequest) -> None:
    """Two processes might get the same one by chance."""
    ids = [item.nodeid for item in request.session.items]
    assert [name for name in ids if re.search(r"\bat 0x[0-9a-f]{6,}", name)] == []


def test_one_function_says_where_processes_find_xbp() -> None:
    """A new PYTHONPATH must contain the user's."""
    texts = {path: path.read_text(encoding="utf-8") for path in TESTS.rglob("*.py")}
    settings = re.compile(r"""['"]PYTHONPATH['"]\s*:\s*(?!search_path\()(\S+)""")
    assert {
        path.name: found for path, text in texts.items() if (found := settings.findall(text))
    } == {}


def test_every_script_that_is_named_exists() -> None:
    """In workflows, documents for contributors, and each other."""
    named = re.compile(r"(?:python3?|sudo \S+ \S+|XBP_\w+=\S+) ((?:tests|docs|benchmarks)/[\w/.]+)")
    files = [
        *(ROOT / ".github").rglob("*.yml"),
        *(ROOT / "docs").glob("*.md"),
        ROOT / ".ci" / "run",
    ]
    files += [ROOT / "CONTRIBUTING.md", ROOT / "README.md", *(ROOT / "tests").glob("*.py")]
    found = {
        (file.name, name.rstrip("."))
        for file in files
        for name in named.findall(file.read_text(encoding="utf-8"))
    }
    assert len(found) > 30
    missing = [
        (file, name)
        for file, name in sorted(found)
        if not (ROOT / name).is_file() and not (ROOT / name / "__main__.py").is_file()
    ]
    assert not missing
