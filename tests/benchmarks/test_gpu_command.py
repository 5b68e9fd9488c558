"""``python -m benchmarks.gpu``: the choice of parts for the time that is left, and the page."""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import time
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import benchmarks.gpu.__main__ as command
from benchmarks.gpu.compile import step as training_step
from benchmarks.gpu.compile import wanted
from benchmarks.gpu.page import page
from benchmarks.gpu.parts import GPU_ONLY, Part, Settings, parts
from benchmarks.gpu.running import Outcome, Running
from benchmarks.gpu.schedule import END, allowance, forecast
from benchmarks.gpu.untried import untried
from xbp.accelerators.cuda import launch
from xbp.accelerators.cuda.ahead import programs
from xbp.benchmarks.workloads import SIDES, SWITCHED, WORKLOADS, takes_part

FACTS = {"device": "NVIDIA H200, compute capability 9.0, 140 GiB", "commit": "abc"}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    settings = Settings("cupy", tmp_path, "gpu_nvidia_h200")
    settings.log("").parent.mkdir()
    return settings


# --- the parts -----------------------------------------------------------------------------------


def test_the_most_telling_come_first(settings: Settings) -> None:
    names = [part.name for part in parts(settings)]
    assert names[:5] == ["info", "compile", "parity", "tests", "training"]
    assert names[5:11] == ["step", "kernels", "ten-epochs", "mlp", "rnn", "seeds"]
    assert [part.name for part in parts(settings) if part.together] == names[:5]
    elsewhere = [part.name for part in parts(Settings("numpy", Path(), "trial_numpy"))]
    assert elsewhere == [name for name in names if name not in GPU_ONLY]


def test_the_commands(settings: Settings) -> None:
    known = {part.name: list(part.command) for part in parts(settings)}
    step = known["step"]
    assert step[1:6] == ["-m", "xbp", "bench", "--backend", "cupy"]
    assert [step[i + 1] for i, word in enumerate(step) if word == "--batch"] == ["128", "32"]
    assert step[-4:] == [
        *("--json", str(settings.folder / "gpu_nvidia_h200_step.json")),
        *("--markdown", str(settings.folder / "gpu_nvidia_h200_step.md")),
    ]
    assert "--rounds" not in step and "--quick" not in step
    assert "--tf32" in known["tf32"] and "--tf32" not in known["mlp"]
    assert [name for name in known if "--bfloat16" in known[name]] == ["bfloat16"]
    tests = known["tests"]
    assert tests[tests.index("--xbp-require") + 1] == tests[tests.index("-k") + 1] == "cupy"
    hurried = Settings("cupy", settings.folder, "x", hurried=True)
    (step,) = (list(part.command) for part in parts(hurried) if part.name == "step")
    assert step[step.index("--rounds") + 1] == "3"


def test_every_workload_of_a_gpu_is_in_a_part(settings: Settings) -> None:
    measured = {word for part in parts(settings) for word in part.command} & set(WORKLOADS)
    usual = {name for name, w in WORKLOADS.items() if takes_part(w.where, "cupy")}
    assert measured == usual - {"import", "call"}  # which need no GPU


WHOLE = {"whole_forward.cu", "whole_backward.cu", "whole_weights.cu"}


def test_those_of_small_networks_in_one_kernel_only_if_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = WORKLOADS["lenet5-train"].model
    monkeypatch.setenv("XBP_WHOLE", "1")
    found = programs(lambda: training_step(model, 128, "uint8"))
    assert {file for file, _ in found} == WHOLE | {"cross_entropy.cu", "passes.cu"}
    monkeypatch.delenv("XBP_WHOLE")
    assert not WHOLE & {file for file, _ in programs(lambda: training_step(model, 128, "uint8"))}


def test_the_kernels_of_the_benchmarks_are_known_beforehand() -> None:
    found = wanted()
    assert len(found) == len(set(found))
    files = {path.name for path in Path(launch.__file__).parent.glob("*.cu")}
    others = {name for name in files if name.startswith(("whole", "winograd"))}  # if asked for
    others |= {"philox.cu", "rows.cu", "short.cu", "softmax.cu"}
    assert {file for file, _ in found} == files - others
    labels = {dict(macros).get("LABEL") for _, macros in found}
    assert labels == {None, "unsigned char", "long long"}
    assert {dict(macros).get("C") for _, macros in found} >= {None, 1, 6}


def test_what_no_gpu_has_run(settings: Settings) -> None:
    """First whether it is right, with each switch in a process of its own, then what it gains."""
    new = untried(settings)
    right = {part.name: part.command for part in new if part.together}
    gains = {part.name: part.command for part in new if not part.together}
    assert list(right) == [
        *(
            f"parity-{side}"
            for side in ("xbp-whole", "xbp-winograd", "xbp-attention", "xbp-dependent")
        ),
        "reduced",
    ]
    assert right["parity-xbp-whole"][:2] == ("env", "XBP_WHOLE=all")
    assert [b for a, b in pairwise(right["parity-xbp-winograd"]) if a == "--only"] == ["convolve"]
    assert set(gains) == set(SWITCHED)
    for side, given in gains.items():
        sides = [b for a, b in pairwise(given) if a == "--side"]
        assert [it for it in sides if it in SWITCHED] == [side] and sides[0] == "xbp"
        _, variable, value = SWITCHED[side]
        assert SIDES[side].environment == {variable: value}
    at_all = allowance(new[0], 12 * 60), sum(part.seconds for part in new if not part.together)
    assert at_all[0] > 60 and at_all[1] + 90 < 12 * 60


# --- what runs in the time that is left ----------------------------------------------------------

ALONE, BESIDE = Part("a", "", (), 60), Part("b", "", (), 60, together=True)


@pytest.mark.parametrize(
    ("part", "left", "seconds"),
    [
        (ALONE, math.inf, math.inf),  # no limit
        (ALONE, 700, 180),  # three times its time
        (ALONE, 100, 90),  # all except the time of the page
        (ALONE, END + 30, 30),  # half of its time
        (ALONE, END + 29, 0),
        (ALONE, 0, 0),
        (ALONE, -5, 0),
        (BESIDE, math.inf, math.inf),
        (BESIDE, END + 100, 60),  # the rest is for the benchmarks
        (BESIDE, END + 49, 0),
    ],
)
def test_what_a_part_may_take(part: Part, left: float, seconds: float) -> None:
    assert allowance(part, left) == seconds


@pytest.mark.parametrize("minutes", [0.5, 1, 2, 5, 12, 30])
def test_the_time_suffices_even_if_each_part_takes_all_it_may(
    minutes: float, settings: Settings
) -> None:
    known, left = parts(settings), 60 * minutes
    left -= max(allowance(part, left) for part in known if part.together)
    for part in known:
        if not part.together:
            left -= allowance(part, left)
    assert left >= END - 1e-9


def test_twelve_minutes_reach_what_tells_most(settings: Settings) -> None:
    known = parts(settings)
    names = [part.name for part in known]
    reached = forecast(known, 12 * 60)
    assert reached[:12] == names[:12]
    assert "compiled" not in reached
    assert forecast(known, math.inf) == names
    assert forecast(known, 5) == []
    before: set[str] = set()
    for minutes in range(1, 40):
        now = set(forecast(known, 60 * minutes))
        assert {"parity", "tests", "step"} & before <= now
        before = now


# --- running -------------------------------------------------------------------------------------

LOCKED = """
import fcntl, subprocess, sys, time
file = open(sys.argv[1], "w")
fcntl.flock(file, fcntl.LOCK_EX)
child = "import time; print('ready', flush=True); time.sleep(600)"
subprocess.run([sys.executable, "-c", child], pass_fds=[file.fileno()])
"""


def python(code: str, *arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code, *arguments)


def wait_until(log: Path, text: str) -> None:
    while text not in log.read_text():
        time.sleep(0.01)


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="sessions are POSIX")
def test_a_part_is_stopped_with_all_that_it_started(tmp_path: Path) -> None:
    import fcntl

    lock = tmp_path / "lock"
    part = Part("slow", "", python(LOCKED, str(lock)), 1)
    running = Running(part, tmp_path / "log", math.inf)
    wait_until(running.log, "ready")
    assert not running.ended() and running.outcome().how == "running"
    running.allowed = 0
    assert running.ended() and running.outcome().how == "stopped"
    with lock.open() as file:
        for _ in range(3000):  # until no process has its number
            with suppress(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            time.sleep(0.01)
    pytest.fail("a process that the part has started is still there")


@pytest.fixture
def run(settings: Settings) -> Any:
    """Run some parts, given as Python code."""

    def make(together: dict[str, str], alone: dict[str, str], end: float = math.inf) -> Any:
        known = [Part(name, "", python(code), 1, together=True) for name, code in together.items()]
        known += [Part(name, "", python(code), 1) for name, code in alone.items()]
        return command.Session(settings, known, FACTS, math.inf, end)

    return make


def test_a_part_that_fails_does_not_stop_the_others(run: Any, capsys: Any) -> None:
    made = run(
        {"info": "print('fine')", "tests": "print('2 failed'); raise SystemExit(3)"},
        {"step": "raise SystemExit('no')", "mlp": "print('also fine')"},
    )
    made.go(made.known)
    assert {name: outcome.how for name, outcome in made.outcomes.items()} == {
        **{"info": "done", "tests": "status 3", "step": "status 1", "mlp": "done"}
    }
    text = made.page.read_text(encoding="utf-8")
    assert made.page.name == "gpu_nvidia_h200.md"
    assert "| tests |  | status 3 |" in text and "| 2 failed |" in text
    assert "- step: status 1 after" in text
    assert made.settings.log("mlp").read_text() == "also fine\n"
    assert "info: done, " in capsys.readouterr().out


def test_without_time_nothing_is_started(run: Any, capsys: Any) -> None:
    made = run({"info": "print(1)"}, {"step": "print(2)"}, end=time.perf_counter())
    made.go(made.known)
    assert {outcome.how for outcome in made.outcomes.values()} == {"not reached"}
    assert "step: not reached; 0 s are left" in capsys.readouterr().out
    assert "- step: " in made.page.read_text().partition("## Not reached")[2]


def test_an_interrupt_leaves_a_page_and_no_process(run: Any, monkeypatch: Any) -> None:
    made = run({"info": "print(1)"}, {"step": "import time; print(1, flush=True); time.sleep(600)"})

    def interrupt(running: list[Running]) -> Running:
        if running[0].part.name == "step":
            wait_until(running[0].log, "1")
            os.kill(os.getpid(), signal.SIGINT)
        return ordinary(running)

    ordinary = command.wait_for_one
    monkeypatch.setattr(command, "wait_for_one", interrupt)
    with pytest.raises(KeyboardInterrupt):
        made.go(made.known)
    assert made.outcomes["step"].how == "stopped"
    assert made.running[0].process.poll() is not None
    text = made.page.read_text()
    assert "| info |  | done |" in text and "- step, in part: " in text


# --- the command ---------------------------------------------------------------------------------


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    def call(*arguments: str) -> int:
        given = ["gpu", "--output", str(tmp_path / "new"), "--backend", "numpy", *arguments]
        monkeypatch.setattr(sys, "argv", given)
        before = signal.getsignal(signal.SIGTERM)
        try:
            with pytest.raises(SystemExit) as exit_:
                command.main()
        finally:
            signal.signal(signal.SIGTERM, before)
        return int(exit_.value.code or 0)

    return call


def test_a_part_by_its_name(main: Any, tmp_path: Path, capsys: Any) -> None:
    assert main("info", "--quick", "--minutes", "9") == 0
    text = (tmp_path / "new" / "trial_numpy_quick.md").read_text(encoding="utf-8")
    assert "backend numpy, 9 minutes" in text and "its numbers mean nothing" in text
    assert "| info | what is installed, and what is wrong with it | done |" in text
    unreached = text.partition("## Not reached")[2]
    assert "- parity: " in unreached and "- kernels: only on a GPU" in unreached
    assert "| numpy | " in unreached
    said = (tmp_path / "new" / "trial_numpy_quick_logs" / "info.txt").read_text(encoding="utf-8")
    assert "numpy" in said
    assert capsys.readouterr().out.endswith("trial_numpy_quick.md\n")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["info", "everything"], "there is no part 'everything'; choose from info, parity, tests"),
        (["--minutes", "0.1"], "--minutes must be more than 0.17, got 0.1"),
        (["--minutes", "nan"], "--minutes must be more than 0.17, got nan"),
    ],
)
def test_wrong_usage(main: Any, arguments: list[str], sentence: str, capsys: Any) -> None:
    assert main(*arguments) == 2
    assert sentence in capsys.readouterr().err


def test_the_names_of_files() -> None:
    assert command.file_stem("cupy", FACTS) == "gpu_nvidia_h200"
    assert command.file_stem("cupy", {"device": "unknown"}, quick=True) == "gpu_unknown_quick"
    assert command.file_stem("numpy", {"device": "cpu"}) == "trial_numpy"


def test_facts_that_cannot_be_told() -> None:
    assert command.ask("no-such", 60)["device"] == "unknown"
    assert "'no-such'" in command.ask("no-such", 60)["facts"]
    assert command.ask("numpy", 60)["device"] == "cpu"


# --- the page ------------------------------------------------------------------------------------


def measured(**ratios: float) -> dict[str, Any]:
    """Results of a benchmark in the format of `xbp bench`."""
    row = {
        **{"workload": "lenet5-train", "label": "128", "flop": 1, "bytes": 1},
        "medians": {"xbp": 1e-3, "torch": 2e-3},
        "ratios": {"xbp": {side: [value, value / 2, value * 2] for side, value in ratios.items()}},
    }
    return {"versions": {}, "failures": ["PyTorch | went away"], "rows": [row]}


def outcome(settings: Settings, name: str, how: str, log: str = "") -> Outcome:
    (part,) = (part for part in parts(settings) if part.name == name)
    settings.log(name).write_text(log, encoding="utf-8")
    return Outcome(part, how, 12.3, settings.log(name), time.time())


def test_the_page(settings: Settings) -> None:
    ratios = {"torch": 0.5, "torch_graph": 3.0, "xbp_eager": 2.0, "reference": 0.1}
    content = measured(**ratios)
    renamed = {side.replace("_", "-"): v for side, v in content["rows"][0]["ratios"]["xbp"].items()}
    content["rows"][0]["ratios"]["xbp"] = renamed
    settings.file("step", "json").write_text(json.dumps(content))
    settings.file("mlp", "json").write_text(json.dumps(measured(torch=0.1)))
    os.utime(settings.file("mlp", "json"), (0, 0))  # from an earlier run
    log = "[gw1] [ 50%] PASSED tests/a.py::b\n[gw0] [ 99%] FAILED tests/a.py::c[cupy] \n"
    log += "FAILED tests/a.py::d - AssertionError\n= 2 failed, 1 passed in 3 s =\n"
    parity = "passed: all 206 rows are within their bounds; 0 hidden waits\nwrote a/b.md\n"
    (rest,) = (part for part in parts(settings) if part.name == "rnn")
    outcomes = [
        outcome(settings, "parity", "done", parity),
        outcome(settings, "tests", "status 1", log),
        outcome(settings, "step", "stopped", "…"),
        outcome(settings, "mlp", "done", "the last word"),
        Outcome(rest, "not reached"),
    ]
    text = page(outcomes, settings, FACTS, 12, {"jax": "no | such"})
    assert text.startswith("# NVIDIA H200, compute capability 9.0, 140 GiB: backend cupy, 12 min")
    sections = {part.partition("\n")[0]: part for part in text.split("\n## ")[1:]}
    ran = sections["What was run"]
    assert "| parity | that every result is numpy's | done | 12 | passed: all 206 rows" in ran
    assert "| stopped | 12 | lenet5-train 128: 128,000 images/s |" in ran
    assert "| 2 failed, 1 passed in 3 s |" in ran and "| the last word |" in ran
    assert "rnn" not in ran
    failed = sections["What failed"]
    assert "- tests: status 1 after 12 s; 2 failed, 1 passed in 3 s" in failed
    assert "  - tests/a.py::c[cupy]" in failed and "  - tests/a.py::d" in failed
    assert "  - PyTorch \\| went away" in failed
    assert "parity" not in failed
    slower = sections["Slower than a peer"]
    assert "| LeNet-5, training step 128 | PyTorch eager | 0.50 (0.25–1.00) |" in slower
    assert "0.10" not in slower  # neither the reference's nor an earlier run's
    faster = sections["As fast as a peer, or faster"]
    assert "| PyTorch, CUDA graph | 3.00 (1.50–6.00) |" in faster and "eager" not in faster
    unreached = sections["Not reached"].splitlines()[2:]
    assert [line.partition(":")[0] for line in unreached if line] == [
        *("- step, in part", "- rnn", "- jax")
    ]
    assert "| commit | abc |" in sections["On what"]


def test_a_page_of_nothing(settings: Settings) -> None:
    text = page([], settings, FACTS)
    assert text.count("Nothing.") == 4
