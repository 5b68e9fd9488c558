"""``xbp bench`` in this process, and sides made for a test."""

import dataclasses

import pytest
from console import runner
from processes import search_path
from quickly import SIDE_XBP

from xbp.benchmarks.workloads import SIDES, WORKLOADS, Side


@pytest.fixture
def command(monkeypatch, capsys):
    return runner(monkeypatch, capsys, "bench")


@pytest.fixture
def side(tmp_path, monkeypatch):
    """A side like xbp's, except for some methods, given as lines of Python."""

    def make(lines, name="fake", **options):
        file = tmp_path / f"side_{name}.py"
        text = f"import os, runpy, sys\nBase = runpy.run_path({str(SIDE_XBP)!r})['Side']\n"
        file.write_text(text + "class Side(Base):\n" + "".join(f"    {x}\n" for x in lines))
        path = {"PYTHONPATH": search_path()}
        new = Side(name, str(file), "xbp", environment=path, **options)
        monkeypatch.setitem(SIDES, name, new)
        for key, workload in WORKLOADS.items():
            if "xbp" in workload.sides and name != "xbp":
                sides = (*workload.sides, name)
                monkeypatch.setitem(WORKLOADS, key, dataclasses.replace(workload, sides=sides))
        return name

    return make
