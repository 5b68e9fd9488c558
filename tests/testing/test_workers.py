"""The certificate in several processes: the same rows, whatever happens to a process."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from processes import search_path

from xbp.backend import why_unavailable
from xbp.errors import XBPError
from xbp.testing import certificate, workers
from xbp.testing.catalogue import catalogue
from xbp.testing.certificate import certify

STRICT = "array_api_strict"
pytestmark = pytest.mark.skipif(bool(why_unavailable(STRICT)), reason="no array-api-strict")


def first_of_all(folder: Path, code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every new process run some code first."""
    (folder / "sitecustomize.py").write_text(code, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", search_path(folder))


def test_the_rows_are_those_of_one_process() -> None:
    names, told = ["numpy", STRICT], list[tuple[int, int, str]]()
    rows = certify(names, "L1Loss", jobs=1)
    assert certify(names, "L1Loss", lambda *what: told.append(what), jobs=2) == rows
    assert rows and all(row.passed for row in rows)
    cases = sum("L1Loss" in item.name for item in catalogue())  # SmoothL1Loss, too
    counted = [(done, cases) for done in range(cases + 1)]
    assert [(done, total) for done, total, _ in told] == counted
    assert len({case for *_, case in told}) == cases + 1


DIES = """
import os
from xbp.testing.catalogue import Item
check = Item.check
def dies(self, backends):
    if "sum" in self.case:
        print("about to die", flush=True)  # no reply
        os.write(2, b"the device is gone")
        os._exit(3)
    return check(self, backends)
Item.check = dies
"""


def test_a_case_that_ends_its_process_costs_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = certify([STRICT], "MSELoss", jobs=1)
    first_of_all(tmp_path, DIES, monkeypatch)
    rows = certify([STRICT], "MSELoss", jobs=2)
    assert [(row.name, row.dtype, row.cases) for row in rows] == [
        (row.name, row.dtype, row.cases) for row in whole
    ]
    for row in rows:
        how = f"{row.dtype}, the process that checked it ended with status 3: the device is gone"
        assert 0 < len(row.failures) < row.cases
        assert all("sum" in failure and failure.endswith(how) for failure in row.failures)


def test_processes_that_cannot_be_started_are_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first_of_all(tmp_path, "import os; os._exit(5)", monkeypatch)
    sentence = "no process can be started: it ended with status 5; --jobs 1 does without"
    with pytest.raises(XBPError) as error:
        certify([STRICT], "L1Loss", jobs=2)
    assert str(error.value) == sentence


def test_an_answer_that_cannot_be_read_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first_of_all(tmp_path, "print('hello')", monkeypatch)
    with pytest.raises(XBPError, match="the processes cannot go on: JSONDecodeError"):
        certify([STRICT], "L1Loss", jobs=2)


def test_the_order_of_rows_is_not_that_of_the_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    check_all, answers = certificate.check_all, list[Any]()
    monkeypatch.setattr(
        certificate, "check_all", lambda *args: answers.extend(check_all(*args)) or answers
    )
    rows = certify([STRICT], "sum")
    assert len({row.name for row in rows}) > 3
    monkeypatch.setattr(certificate, "check_all", lambda *_: reversed(answers))
    assert certify([STRICT], "sum") == rows


@pytest.mark.parametrize(
    ("cores", "cases", "jobs"),
    [(16, 830, 8), (2, 830, 2), (1, 830, 1), (16, 12, 1), (16, 0, 1), (16, 100, 3)],
)
def test_the_usual_number_of_processes(
    cores: int, cases: int, jobs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "cores", lambda: cores)
    assert workers.usual_jobs(cases) == jobs


def test_processes_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "cores", lambda: 16)
    for name in workers.THREADS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    given = workers.environment(8)
    assert given["XBP_NUM_THREADS"] == given["OPENBLAS_NUM_THREADS"] == "2"
    assert given["OMP_NUM_THREADS"] == "5"  # the user's own choice
    assert workers.environment(32)["XBP_NUM_THREADS"] == "1"
    assert os.environ["PYTHONPATH"] in given["PYTHONPATH"]
