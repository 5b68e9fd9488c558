"""Exercises: right answers pass, planted mistakes are found and named, reports say so."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from homework.faults import FAULTS, SOLUTIONS, found, planted
from typer.testing import CliRunner

from xbp import nn
from xbp.cli import app
from xbp.homework import (
    EXERCISES,
    KINDS,
    Hint,
    Truth,
    as_json,
    as_junit,
    as_text,
    check_apart,
    check_file,
    diagnose,
)
from xbp.optim import Adam
from xbp.testing import check_gradients

RIGHT = sorted(SOLUTIONS.glob("*.py"))

OURS = {
    "linear": lambda x, d, p: nn.Linear(x.shape[1], d.shape[1], dtype="float64"),
    "sigmoid": lambda *inputs: nn.Sigmoid(),
    "softmax": lambda *inputs: nn.Softmax(),
    "batch_norm": lambda x, d, p: nn.BatchNorm1d(x.shape[1], dtype="float64"),
    "conv2d": lambda x, d, p: nn.Conv2d(
        x.shape[1], d.shape[1], p["weight"].shape[2:], dtype="float64"
    ),
    "max_pool": lambda *inputs: nn.MaxPool2d(2, stride=1),
    "rnn": lambda x, d, p: nn.RNN(x.shape[2], d.shape[2], dtype="float64"),
    "mse": lambda *inputs: nn.MSELoss(),
    "cross_entropy": lambda *inputs: nn.CrossEntropyLoss(),
}


def equal(a: Any, b: Any) -> None:
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-11)  # float64, some tens of roundings


@pytest.mark.parametrize("name", [name for name in EXERCISES if name != "adam"])
def test_the_right_arrays_are_those_of_xbp(name: str) -> None:
    """Two implementations, which have nothing in common."""
    exercise = EXERCISES[name]
    for inputs in exercise.cases:
        right, ours = exercise.right(*inputs), OURS[name](*inputs)
        if exercise.kind == "loss":
            value, gradient = ours(*inputs)
            equal(value, right["value"].value)
            equal(gradient, right["gradient"].value)
            continue
        x, delta, values = inputs
        own = dict(ours.named_parameters())
        names = {key: f"{key}_l0" if name == "rnn" else key for key in values}
        names |= {"bias": "bias_ih_l0"} if name == "rnn" else {}
        if name == "rnn":
            own["bias_hh_l0"].assign(np.zeros(own["bias_hh_l0"].shape))
        for key, value in values.items():
            own[names[key]].assign(value)
        y, backward = ours.forward(x, training=True)
        equal(y, right["output"].value)
        equal(backward(delta), right["input"].value)
        for key in values:
            equal(own[names[key]].grad, right[key].value)


def test_the_right_steps_are_those_of_xbp() -> None:
    exercise = EXERCISES["adam"]
    ((start, *gradients),) = exercise.cases
    parameter = nn.Parameter(start.copy())
    optimizer = exercise.make(Adam, [parameter])
    for gradient, truth in zip(gradients, exercise.right(start, *gradients).values(), strict=True):
        before = parameter.data.copy()
        parameter.zero_grad()
        parameter.add_grad(gradient)
        optimizer.step()
        equal(parameter.data - before, truth.value)


@pytest.mark.parametrize("path", RIGHT, ids=lambda path: path.stem)
def test_a_right_answer_is_right(path: Path) -> None:
    (answer,) = check_file(path)
    assert answer.right, answer.hints
    assert answer.exercise == path.stem
    assert "other backends" in answer.passed


def test_planted_mistakes_are_found_and_named() -> None:
    """All 60 are found; a hint names the kind of 57."""
    assert len(FAULTS) == 60
    assert {fault.exercise for fault in FAULTS} == set(EXERCISES)
    answers = [found(fault) for fault in FAULTS]
    missed = [fault for fault, answer in zip(FAULTS, answers, strict=True) if answer.right]
    assert not missed
    named = [
        fault
        for fault, answer in zip(FAULTS, answers, strict=True)
        if any(hint.kind == fault.kind for hint in answer.hints)
    ]
    assert len(named) >= 57
    assert {hint.kind for answer in answers for hint in answer.hints} <= set(KINDS)


@pytest.mark.parametrize("name", list(EXERCISES))
def test_what_is_handed_out_is_wrong_and_says_that_it_is_not_written(
    name: str, tmp_path: Path
) -> None:
    file = tmp_path / f"{name}.py"
    file.write_text(EXERCISES[name].text(), encoding="utf-8")
    (answer,) = check_file(file)
    assert not answer.passed
    assert {hint.sentence for hint in answer.hints} == {"it is not written yet"}


HALF = np.array([[1.0, 2.0], [3.0, 5.0]])


@pytest.mark.parametrize(
    ("wrong", "kind", "said"),
    [
        (-HALF, "sign", "its sign"),
        (HALF / 3, "factor", "1/N"),
        (HALF.T, "transpose", "transpose"),
        (np.stack([HALF / 2, HALF / 2]), "sum", "over axis 0"),
        (HALF.sum(axis=0), "sum", "axis 0, which should stay"),
        (0 * HALF, "chain", "nothing arrives"),
        (HALF * np.nan, "overflow", "not finite"),
        (HALF.reshape(4), "shape", "the numbers are right"),
        ("no array", "contract", "should be an array"),
        (HALF + np.diag([0.0, 1.0]), "unknown", "entry (1, 1) is 6 in place of 5"),
    ],
)
def test_a_wrong_array_is_diagnosed(wrong: Any, kind: str, said: str) -> None:
    hint = diagnose("∂L/∂W", wrong, Truth(HALF, sizes={"N": 3}))
    assert hint is not None
    assert hint.kind == kind
    assert said in hint.sentence
    assert diagnose("∂L/∂W", HALF, Truth(HALF)) is None


def answers_to(tmp_path: Path, text: str, name: str = "linear") -> Sequence[Any]:
    file = tmp_path / f"{name}.py"
    file.write_text(text, encoding="utf-8")
    return check_apart(file, timeout=20)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import sys\nclass Linear: pass\nsys.exit(3)", "its process ended"),
        ("class Linear(:", "cannot be imported"),
        ("x = 1", "it has no class Linear"),
    ],
)
def test_a_file_that_cannot_be_checked_is_an_answer_too(
    text: str, said: str, tmp_path: Path
) -> None:
    (answer,) = answers_to(tmp_path, text)
    assert said in answer.hints[0].sentence


def test_an_endless_loop_ends(tmp_path: Path) -> None:
    file = tmp_path / "linear.py"
    file.write_text("class Linear: pass\nwhile True: pass", encoding="utf-8")
    (answer,) = check_apart(file, timeout=3)
    assert answer.hints == [Hint("the file", "crash", "it has not finished after 3 seconds")]


def test_an_answer_for_one_library_alone_is_told_so(tmp_path: Path) -> None:
    pytest.importorskip("array_api_strict")
    right = (SOLUTIONS / "softmax.py").read_text(encoding="utf-8")
    text = "import numpy as np\n" + right.replace("xp.exp(", "np.exp(")
    file = tmp_path / "softmax.py"
    file.write_text(text, encoding="utf-8")
    (answer,) = check_file(file)
    assert [hint.kind for hint in answer.hints] == ["device"]


def test_a_gradient_that_is_assigned_is_told_to_be_added(tmp_path: Path) -> None:
    right = (SOLUTIONS / "linear.py").read_text(encoding="utf-8")
    file = tmp_path / "linear.py"
    file.write_text(
        right.replace("add_bias_grad(xp.sum(dy, axis=0))", "self.bias.grad = xp.sum(dy, axis=0)")
    )
    (answer,) = check_file(file)
    (hint,) = answer.hints
    assert (hint.quantity, hint.kind) == ("∂L/∂b", "sum")


def test_the_command_writes_exercises_checks_them_and_reports(tmp_path: Path) -> None:
    folder, run = tmp_path / "homework", CliRunner().invoke
    made = run(app, ["homework", "new", str(folder), "--exercise", "linear", "--exercise", "mse"])
    assert made.exit_code == 0, made.output
    assert {path.name for path in folder.iterdir()} == {
        "linear.py",
        "mse.py",
        "README.md",
        ".github",
    }
    (folder / "mse.py").write_text((SOLUTIONS / "mse.py").read_text("utf-8"), encoding="utf-8")
    reports = ["--json", str(tmp_path / "all.json"), "--junit", str(tmp_path / "all.xml")]
    files = [str(folder / "linear.py"), str(folder / "mse.py")]
    done = run(app, ["homework", "check", *files, *reports])
    assert done.exit_code == 1
    assert "✗ ∂L/∂W: it is not written yet" in done.output
    assert "1 of 2 right" in done.output
    whole = json.loads((tmp_path / "all.json").read_text("utf-8"))
    assert whole["right"] == 1
    assert [answer["right"] for answer in whole["answers"]] == [False, True]
    suites = ElementTree.parse(tmp_path / "all.xml").getroot()
    assert [(it.get("name"), it.get("failures")) for it in suites] == [
        ("linear", "4"),
        ("mse", "0"),
    ]
    again = run(app, ["homework", "new", str(folder)])
    assert again.exit_code == 2
    assert "is there already" in again.output


def test_a_teacher_can_have_exercises_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import numpy as np\n"
        "from xbp.homework import Exercise, Truth\n"
        "x = np.array([[1.0, -2.0]])\n"
        "def square(x, delta, parameters):\n"
        "    factors = {'2': np.full(x.shape, 2.0), 'x': x}\n"
        "    return {'output': Truth(x * x), 'input': Truth(2 * x * delta, factors=factors)}\n"
        "EXERCISES = {'square': Exercise('square', 'layer', 'Square', 'y = x²',\n"
        "    lambda cls, *inputs: cls(), [(x, x + 0.5, {})], square, template='…')}\n",
        encoding="utf-8",
    )
    (tmp_path / "square.py").write_text(
        "from xbp import nn\n"
        "class Square(nn.Layer):\n"
        "    def forward(self, x, *, training=False, rng=None):\n"
        "        return x * x, lambda dy: x * dy\n",
        encoding="utf-8",
    )
    (answer,) = check_apart(tmp_path / "square.py", tmp_path / "mine.py")
    assert [hint.kind for hint in answer.hints] == ["factor"]
    assert "½" in str(answer.hints[0])


def test_reports_of_a_right_answer() -> None:
    answers = check_file(SOLUTIONS / "sigmoid.py")
    assert next(iter(as_text(answers))).endswith("right")
    assert json.loads(as_json(answers))["kinds"] == {}
    assert 'failures="0"' in as_junit(answers)


def test_the_count_is_printed() -> None:
    with planted(FAULTS[0]) as file:
        done = subprocess.run(
            [sys.executable, "-m", "xbp.homework.apart", str(file)],
            capture_output=True,
            text=True,
            check=True,
        )
    assert json.loads(done.stdout)[0]["hints"][0]["kind"] == "transpose"


def test_solutions_have_the_gradients_that_numeric_ones_confirm() -> None:
    """Independent of `right`: a solution with a wrong gradient would be found by differences."""
    (answer,) = check_file(SOLUTIONS / "batch_norm.py")
    assert "numeric derivatives" in answer.passed
    check_gradients(nn.BatchNorm1d(3), EXERCISES["batch_norm"].cases[0][0])
