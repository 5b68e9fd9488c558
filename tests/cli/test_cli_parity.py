"""``xbp parity``: its table, its exit status, its certificate."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from console import Result, runner

import xbp
from xbp import nn
from xbp.backend import why_unavailable
from xbp.cli import parity
from xbp.testing.catalogue import catalogue
from xbp.testing.certificate import Certificate, Row

STRICT = "array_api_strict"
needs_strict = pytest.mark.skipif(bool(why_unavailable(STRICT)), reason="no array-api-strict")


Command = Callable[..., Result]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    return runner(monkeypatch, capsys, "parity")


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tanh's backward is 1 % too large on all backends except numpy."""
    forward = nn.Tanh.forward

    def off(self: nn.Tanh, x: Any, **options: Any) -> Any:
        y, backward = forward(self, x, **options)
        factor = 1.0 if isinstance(x, np.ndarray) else 1.01
        return y, lambda dy: factor * backward(dy)

    monkeypatch.setattr(nn.Tanh, "forward", off)


# --- what it says --------------------------------------------------------------------------------


@needs_strict
def test_a_backend_that_passes(command: Command) -> None:
    result = command("--backend", STRICT, "--only", "tanh(")
    assert result.code == 0, result.err
    lines = [line for line in result.out.splitlines() if line.startswith("Tanh")]
    assert [line.split()[1] for line in lines] == ["float32", "float64"]
    assert all(line.split()[-2:] == ["0", "passed"] for line in lines)
    assert result.out.splitlines()[-1].startswith("passed: all ")
    assert result.out.splitlines()[-1].endswith("; 0 hidden waits")


@needs_strict
@pytest.mark.usefixtures("broken")
def test_a_broken_backward_is_exit_status_1_and_comes_first(
    command: Command, tmp_path: Path
) -> None:
    files = tmp_path / "p.json", tmp_path / "p.md"
    result = command(
        *("--backend", STRICT, "--only", "tanh(", "--jobs", 1),  # here, where it is broken
        *("--json", files[0], "--markdown", files[1]),
    )
    assert result.code == 1
    assert "FAILED" in result.out.splitlines()[-3]
    rows = [
        line for line in result.out.splitlines() if "float32" in line and "in float" not in line
    ]
    assert "Tanh" in rows[0] and rows[0].rstrip().endswith("FAILED")
    content = json.loads(files[0].read_text(encoding="utf-8"))
    assert content["passed"] is False
    assert "the gradient of the input" in content["failures"][0]
    assert [row["passed"] for row in content["rows"]] == sorted(
        row["passed"] for row in content["rows"]
    )
    worst = content["rows"][0]
    cases = [item for item in catalogue() if (item.kind, item.name) == ("layer", "Tanh")]
    assert (worst["kind"], worst["name"], worst["cases"]) == ("layer", "Tanh", len(cases))
    assert worst["backward"] > 1 > worst["forward"]
    text = files[1].read_text(encoding="utf-8")
    assert "**FAILED: 2 of" in text
    assert text.index("## What failed") < text.index("| command |")


@needs_strict
def test_the_certificate_says_what_was_run(command: Command, tmp_path: Path) -> None:
    files = tmp_path / "p.json", tmp_path / "p.md"
    files[0].write_text("what was there before")
    result = command(
        *("--backend", STRICT, "--only", "erf", "--json", files[0], "--markdown", files[1])
    )
    assert result.code == 0
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["p.json", "p.md"]
    content = json.loads(files[0].read_text(encoding="utf-8"))
    about = content["about"]
    assert about["command"].startswith(f"xbp parity --backend {STRICT} --only erf --json ")
    assert about["xbp"] == xbp.__version__ and about["numpy"] == np.__version__
    assert "UTC" in about["date"]
    assert content["backends"] == {STRICT: {"device": "device1"}}
    text = files[1].read_text(encoding="utf-8")
    for row in content["rows"]:
        assert f"| {row['kind']} {row['name']} | {row['dtype']} | {row['cases']} |" in text
    for key, value in about.items():
        assert f"| {key} | {value} |" in text


@needs_strict
def test_a_folder_for_certificates(command: Command, tmp_path: Path) -> None:
    """A certificate of a part has a name of its own, and does not replace the whole one."""
    folder, file = tmp_path / "new", tmp_path / "mine.json"
    backends = ("--backend", STRICT, "--backend", "numpy", "--only", "Tanh(", "--jobs", 1)
    result = command(*backends, "--output", folder, "--json", file)
    assert result.code == 0, result.err
    name = f"parity_{STRICT}_numpy_only_tanh.md"
    assert [path.name for path in folder.iterdir()] == [name]
    assert f"wrote {folder / name}" in result.out
    assert json.loads(file.read_text(encoding="utf-8"))["passed"]


def test_numpy_alone_is_said_plainly(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xbp.cli.parity.available_backends", lambda: ["numpy"])
    result = command("--only", "layer Negation")
    assert result.code == 0
    assert result.out.startswith("only numpy is checked")
    assert result.out.splitlines()[-1].endswith("hidden waits cannot be seen here")


def test_by_default_every_backend_that_works_here(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def certify(names: list[str], only: str, progress: object, jobs: object) -> list[Row]:
        asked.extend(names)
        return []

    monkeypatch.setattr("xbp.testing.certificate.certify", certify)
    command()
    assert asked == xbp.available_backends()


@needs_strict
def test_progress_is_told_where_no_person_watches(command: Command) -> None:
    lines = command("--backend", STRICT, "--only", "L1Loss").err.splitlines()
    cases = sum("L1Loss" in item.name for item in catalogue())  # SmoothL1Loss, too
    assert lines[0] == f"0 of {cases} cases" and lines[-1] == f"{cases} of {cases} cases"
    assert 3 < len(lines) <= 12


def test_progress_is_ten_lines_however_many_cases(capsys: pytest.CaptureFixture[str]) -> None:
    for done in range(831):
        parity.tell(done, 830, "")
    said = capsys.readouterr().err.splitlines()
    assert said == [f"{done} of 830 cases" for done in range(0, 831, 83)]


def test_of_ranks_it_tells_how_far_it_is_too(
    command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("xbp.testing.ranks.SAMPLES", 66)
    result = command("--ranks", "1", "--only", "batch norm", "--markdown", tmp_path / "p.md")
    assert result.err.splitlines() == ["0 of 2 cases", "1 of 2 cases", "2 of 2 cases"]


def test_a_column_is_shown_if_a_row_has_something_there(capsys: pytest.CaptureFixture[str]) -> None:
    found = Certificate([row("Tanh"), row("LeNet-5", backward=None)], {}, {"torch": {"device": ""}})
    without = Certificate(found.rows[1:], {}, found.backends, ranks=2)
    for certificate in (found, without):
        parity.print_tables(certificate)
        said = capsys.readouterr().out
        assert ("backward" in said.partition("passed")[0]) == (certificate is found)
        assert ("backward" in certificate.as_markdown().partition("| item")[2]) == (
            certificate is found
        )
    assert said.startswith("Parity of 2 ranks with one process of numpy in float64\n")


def test_the_tables_fit_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """Each row of the catalogue is one line."""
    items = list({(item.kind, item.name): item for item in catalogue()}.values())
    rows = [row(item.name, kind=item.kind, waits=10, cases=100, forward=1e9) for item in items]
    parity.print_tables(Certificate(rows, {}, {"torch": {"device": "cpu"}}))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert len([line for line in lines if line.rstrip().endswith("passed")]) == len(rows)


# --- bad usage -----------------------------------------------------------------------------------


def unavailable() -> str:
    reason = why_unavailable("cupy")
    if reason is None:
        pytest.skip("there is a GPU here")
    return reason


def test_cupy_without_a_gpu_is_one_sentence_and_status_2(command: Command) -> None:
    reason = unavailable()
    result = command("--backend", "cupy")
    assert (result.code, result.out, result.err) == (2, "", f"Error: {reason}\n")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--backend", "abacus"], "there is no backend 'abacus'"),
        (["--only", "no such thing"], "no case has 'no such thing' in it"),
        (["--json", "nowhere/p.json"], "'nowhere/p.json' cannot be written"),
        (["--markdown", "."], "'.' is a folder"),
        (["--jobs", "0"], "--jobs must be an integer of at least 1, got 0"),
    ],
)
def test_bad_usage_is_one_sentence_and_status_2(
    command: Command, arguments: list[str], sentence: str
) -> None:
    result = command(*arguments)
    assert result.code == 2
    assert result.err.startswith(f"Error: {sentence}")
    assert result.err.count("\n") == 1


# --- the certificate itself ----------------------------------------------------------------------


def row(name: str, **changes: Any) -> Row:
    fields: dict[str, Any] = {
        **{"kind": "layer", "name": name, "backend": "torch", "dtype": "float32", "cases": 3},
        **{"forward": 0.5, "backward": 0.0, "state": None, "bits": True, "waits": None},
        "failures": (),
    }
    return Row(**(fields | changes))


def test_what_failed_comes_first_and_numbers_that_json_lacks_are_text() -> None:
    bad = row("B", forward=float("inf"), bits=False, failures=("B is | wrong",))
    made = Certificate([row("A"), bad], {"command": "a | b"}, {"torch": {"device": "cpu"}})
    content = json.loads(made.as_json())
    assert [r["name"] for r in content["rows"]] == ["B", "A"]
    assert content["rows"][0]["forward"] == "inf"
    assert content["failures"] == ["B is | wrong"]
    text = made.as_markdown()
    assert "| layer B | float32 | 3 | inf | 0 | DIFFER | – | FAILED |" in text
    assert text.index("| layer B |") < text.index("| layer A |")
    assert "| command | a \\| b |" in text
    assert made.verdict().startswith("FAILED: 1 of 2 rows")


def test_an_empty_certificate_cannot_be_had(command: Command) -> None:
    """A mistyped --only must not report success."""
    assert command("--only", "Lienar").code == 2
