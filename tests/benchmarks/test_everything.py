"""All benchmarks, run quickly: all sides compute the same. Nothing here measures time."""

import importlib.util
import json
import math
import sys
from contextlib import redirect_stdout
from io import StringIO
from runpy import run_module

import pytest
from quickly import INSTALLED, ROOT

from xbp.benchmarks.workloads import NEXT, WORKLOADS, takes_part


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """A quick run of everything, with installed peers: (JSON, Markdown, PNG, standard output)."""
    folder = tmp_path_factory.mktemp("bench")
    files = [folder / name for name in ("r.json", "r.md", "r.png")]
    options = zip(("--json", "--markdown", "--plot"), map(str, files), strict=True)
    sides = [f"--side={name}" for name in ("xbp", "reference", "numpy", *INSTALLED)]
    words = ["benchmarks", "--quick", "--threads=1", *sides]
    words += [item for option in options for item in option]
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(StringIO()) as out:
        patch.setattr(sys, "argv", words)
        patch.setattr(sys, "path", [str(ROOT), *sys.path])
        with pytest.raises(SystemExit) as end:
            run_module("benchmarks", run_name="__main__")
        assert not end.value.code
    texts = [file.read_text(encoding="utf-8") for file in files[:2]]
    return json.loads(texts[0]), texts[1], files[2].read_bytes(), out.getvalue()


class Everything:
    """What must hold of one run."""

    def __init__(self, found):
        self.found = found

    def each_workload_on_each_of_its_sides(self):
        rows = {row["workload"]: row for row in self.found[0]["rows"]}
        assert list(rows) == [n for n, w in WORKLOADS.items() if takes_part(w.where, "numpy")]
        for name, row in rows.items():
            expected = [s for s in WORKLOADS[name].sides if s in ("xbp", "reference", "numpy")]
            expected += [s for s in WORKLOADS[name].sides if s in INSTALLED]
            assert sorted(row["costs"]) == sorted(expected), name
            for costs in row["costs"].values():
                assert costs
                assert all(cost > 0 or name == "growth" for cost in costs)

    def all_sides_computed_the_same(self):
        checked = [row for row in self.found[0]["rows"] if "deviation" in row]
        assert {row["workload"] for row in checked} == {
            *("lenet5-train", "lenet5-infer", "mlp", "rnn"),
            *("accuracy", "two-epochs", "one-epoch", *NEXT),
        }
        for row in checked:
            assert set(row["losses"]) == set(row["costs"])
            assert max(row["deviation"].values()) <= WORKLOADS[row["workload"]].same
            assert all(math.isfinite(loss) for losses in row["losses"].values() for loss in losses)
        losses = {row["workload"]: row["losses"]["xbp"] for row in checked}
        assert losses["lenet5-train"][0] == pytest.approx(math.log(10), rel=0.1)  # new weights
        assert losses["lenet5-train"][0] != losses["lenet5-train"][1]  # and it trains

    def one_side_of_xbp_is_its_reference(self):
        assert self.found[0]["versions"]["reference"]["accelerators"] == "off"
        assert self.found[0]["versions"]["xbp"]["accelerators"] != "off"

    def floor(self):
        rows = {row["workload"]: row for row in self.found[0]["rows"]}
        for name in ("lenet5-train", "lenet5-infer", "mlp", "rnn", *NEXT):
            assert rows[name]["floor"] > 0
        assert rows["mlp"]["products"] > 0

    def tables(self):
        text = self.found[1]
        assert self.found[3] == text
        for workload in WORKLOADS.values():
            heading = f"## {workload.title} ({workload.unit})"
            assert (heading in text) == takes_part(workload.where, "numpy")
        for table in text.split("## ")[1:-1]:
            lines = [line for line in table.splitlines() if line.startswith("|")]
            assert len({line.count("|") for line in lines}) == 1
            assert len(lines) >= 3
        assert "its numbers mean nothing" in text

    def plot(self):
        assert not importlib.util.find_spec("matplotlib") or self.found[2].startswith(b"\x89PNG")

    def json_says_where_and_with_what(self):
        assert set(self.found[0]) == {
            *("machine", "options", "versions", "not_run", "failures", "rows"),
        }
        assert self.found[0]["machine"]["cpus"] >= 1
        assert self.found[0]["options"]["threads"] == 1
        assert self.found[0]["failures"] == []


def test_everything(found):
    """One test, as each process that had a part of it would make the whole run again."""
    checks = Everything(found)
    for name, check in vars(Everything).items():
        if not name.startswith("_"):
            check(checks)
