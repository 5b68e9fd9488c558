"""All examples, run in this process, with few epochs or samples where the full run is long."""

import subprocess
import sys
from contextlib import redirect_stdout
from functools import cache
from io import StringIO
from pathlib import Path
from runpy import run_path
from tempfile import TemporaryDirectory

import pytest
from nightly import NIGHTLY
from processes import search_path

import xbp
from xbp.datasets.known import CIFAR10_TRAIN

EXAMPLES = Path(__file__).parent.parent / "examples"

CIFAR10 = "CIFAR10"
"""Stands for a folder of black images of class 0, in files of the official sizes."""

PLAY = "PLAY"
"""Stands for a play in which two speak, each of a thing of its own."""

SEEDS = "20" if NIGHTLY else "4"

RUNS = {
    "mnist_best.py": (
        ["--limit", "256", "--epochs", "1", "--batch-size", "64", "--width", "2"],
        "test accuracy",
    ),
    "who_speaks.py": ([PLAY, "--epochs", "20", "--width", "16", "--hidden", "16"], "test accuracy"),
    "lenet5_mnist.py": (
        ["--limit", "2560", "--epochs", "1", "--batch-size", "32"],
        "test accuracy",
    ),
    "lenet5_1998.py": (
        ["--limit", "2560", "--epochs", "1", "--batch-size", "32"],
        "all parameters: 60,000 (paper: 60,000)",
    ),
    "gpt.py": (
        [
            str(EXAMPLES.parent / "README.md"),
            "--steps",
            "30",
            "--layers",
            "2",
            "--width",
            "32",
            "--context",
            "16",
            "--sample",
            "20",
        ],
        "validation loss",
    ),
    "resnet20_cifar10.py": (
        [CIFAR10, "--limit", "32", "--batch-size", "16", "--epochs", "1"],
        "epoch 1: loss",
    ),
    "fast_cifar10.py": (
        [CIFAR10, "--limit", "64", "--batch-size", "32", "--epochs", "1"],
        "epoch 1: test accuracy",
    ),
    "larger_than_memory.py": (["--epochs", "1"], "accuracy on 100 others"),
    "convolution.py": ([], "∂E/∂x from the layer, and δ * w: equal"),
    "initial_weights.py": (["--backend", "array_api_strict"], "layers 1 to 10"),
    "rnn_mnist_rows.py": (["--limit", "320", "--epochs", "1", "--hidden", "64"], "test accuracy"),
    "adding_problem.py": (
        ["--length", "10", "--steps", "400", "--hidden", "32"],
        "gru, length 10: solved",
    ),
    "breast_cancer.py": (
        ([], "17 of 17 reach 0.95 on the held-out samples")
        if NIGHTLY
        else (["--only", "nesterov,lamb,muon"], "3 of 3 reach 0.95 on the held-out samples")
    ),
    "scikit_learn.py": (["--seeds", "1", "--max-iter", "2"], "digits"),
    "custom_layer.py": ([], "equal numpy's"),
    "pytorch_weights.py": ([], "the same outputs: 8 of 8"),
    "worked_2_2_2.py": (["--steps", "100", "--backend", "array_api_strict"], "0.291027774"),
    "x_plus_2y.py": ([], "fell below 1e-6"),
    "xor.py": (["--seeds", SEEDS], f"2-4-1: all four patterns right for {SEEDS} of {SEEDS} seeds"),
}


SAID = [("ROMEO", "roses"), ("JULIET", "larks")]


@cache
def run(name: str, *options: str) -> str:
    with TemporaryDirectory() as folder:
        if CIFAR10 in options:
            for file in (*CIFAR10_TRAIN, "test_batch.bin"):
                with (Path(folder) / file).open("wb") as made:
                    made.truncate(10_000 * (1 + 3 * 32 * 32))  # a hole: it takes no room on disk
        places = {CIFAR10: folder, PLAY: f"{folder}/play.txt"}
        if PLAY in options:
            lines = [f"{who}:\nI like {what} {i % 7}.\n" for i in range(60) for who, what in SAID]
            Path(places[PLAY]).write_text("\n".join(lines), encoding="utf-8")
        return finished(name, *(places.get(word, word) for word in options))


def finished(name: str, *options: str) -> str:
    """What an example prints, run in this process; MNIST has its first images only."""
    (x, y), (x_test, y_test) = xbp.datasets.load_mnist()
    few = (x[:4000], y[:4000]), (x_test[:1000], y_test[:1000])
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(StringIO()) as out:
        patch.setattr(sys, "argv", [str(EXAMPLES / name), *options])
        patch.setattr(xbp.datasets, "load_mnist", lambda: few)
        run_path(str(EXAMPLES / name), run_name="__main__")
    return out.getvalue()


def test_one_is_a_program_of_its_own() -> None:
    """It needs no more than xbp, and says the same in a new interpreter as in this one."""
    name, (options, _) = "worked_2_2_2.py", RUNS["worked_2_2_2.py"]
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *options],
        capture_output=True,
        text=True,
        check=False,
        cwd=EXAMPLES.parent,
        env={"PYTHONPATH": search_path(), "PATH": "", "PYTHONIOENCODING": "utf-8"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == run(name, *options)


def test_every_example_is_run_here() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(RUNS)


@pytest.mark.parametrize("name", RUNS)
def test_runs(name: str) -> None:
    if name == "pytorch_weights.py":
        pytest.importorskip("torch")
    options, expected = RUNS[name]
    assert expected in run(name, *options)


def test_the_breast_cancer_network_is_trained_by_every_optimizer() -> None:
    """For one epoch; nightly, and three of them always, until they reach 0.95."""
    options = () if NIGHTLY else ("--epochs", "1")
    output, base = run("breast_cancer.py", *options), xbp.optim.Optimizer
    offers = {name: getattr(xbp.optim, name) for name in xbp.optim.__all__}
    for name, offer in offers.items():
        if isinstance(offer, type) and issubclass(offer, base) and offer is not base:
            assert f"│ {name}" in output


def test_lenet5_learns_from_a_few_images() -> None:
    """80 steps of batch 32 take it to about 90 %; 10 % is chance."""
    output = run("lenet5_mnist.py", *RUNS["lenet5_mnist.py"][0])
    assert float(output.rpartition("test accuracy ")[2].strip().rstrip("%")) > 75


def test_the_lenet5_of_1998_learns_from_a_few_images() -> None:
    """80 steps of batch 32 take it to about 70 %, for its loss begins slowly; 10 % is chance."""
    output = run("lenet5_1998.py", *RUNS["lenet5_1998.py"][0])
    assert float(output.rpartition("test accuracy ")[2].strip().rstrip("%")) > 50


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_recurrent_layers_learn_from_a_few_images(cell: str) -> None:
    """240 steps of batch 32 take them to 53 % (rnn), 79 % (lstm), 77 % (gru); 10 % is chance."""
    options = ["--limit", "3840", "--epochs", "2", "--hidden", "64", "--batch-size", "32"]
    output = run("rnn_mnist_rows.py", "--cell", cell, *options)
    assert float(output.rpartition("test accuracy ")[2].strip().rstrip("%")) > 40


def test_gpt_learns_which_characters_are_common() -> None:
    """30 steps take it to about 3.7; all characters alike would be log 120 = 4.8."""
    name = "gpt.py"
    output = run(name, *RUNS[name][0])
    assert float(output.rpartition("validation loss ")[2].split()[0]) < 4.2


def test_a_text_classifier_learns_who_says_what() -> None:
    """One word tells; by chance half would be right."""
    output = run("who_speaks.py", *RUNS["who_speaks.py"][0])
    assert float(output.rpartition("test accuracy ")[2].partition("%")[0]) > 95


def test_convolutions_are_what_the_example_says() -> None:
    output = run("convolution.py")
    assert output.count(": equal") == 3
    assert output.count(": they differ") == 1


def test_initial_weights_do_what_their_papers_say(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    image = tmp_path / "weights.png"
    output = run("initial_weights.py", "--plot", str(image))
    assert image.read_bytes().startswith(b"\x89PNG")
    activations, gradients = output.split("\n\n")[:2]

    def last_over_first(table: str, name: str) -> float:
        row = next(line for line in table.splitlines() if line.startswith(name))
        deviations = [float(value) for value in row[24:].split()]
        return deviations[-1] / deviations[0]

    # Through the 9 layers between, weights of variance v/n multiply a signal that is far from
    # saturation by about √v each: 0.16⁹ = 7e-8 for the small ones, 3^-4.5 = 7e-3 for U(±1/√n).
    assert 1e-8 < last_over_first(activations, "too small") < 1e-6
    assert 3e-3 < last_over_first(activations, "U(±1/√n)") < 2e-2
    assert 3e-3 < 1 / last_over_first(gradients, "U(±1/√n)") < 2e-2
    assert 1e3 < 1 / last_over_first(gradients, "too large") < 1e5
    for name in ("Xavier, here", "Xavier, gain", "orthogonal", "He"):
        assert 0.2 < last_over_first(activations, name) < 1
        assert 0.2 < last_over_first(gradients, name) < 5


def test_the_explicit_loop_fits_on_a_screen() -> None:
    assert len((EXAMPLES / "lenet5_mnist.py").read_text(encoding="utf-8").splitlines()) < 60
