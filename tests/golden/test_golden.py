"""Files of commit 9756be1 load, resume and give its results; today's files match them.

`write.py` says how they were made. They are never written again: a change that one of these tests
notices is a change of format, or of the meaning of a seed, and makes old files useless.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import re
import shutil
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden.comparing import ROUNDING, assert_same, assert_same_file, distance, read, unpacked
from golden.problems import (
    CLI_MIDDLE,
    DRAWS,
    EXACT,
    FILES,
    MODELS,
    NAMED,
    ORDERS,
    TRAININGS,
    checkpoint,
    dense,
    small28,
)

import xbp
from xbp import nn, optim
from xbp.accelerators import disabled
from xbp.benchmarks.tables import markdown
from xbp.cli import main
from xbp.random import RandomStream, permutation
from xbp.report.run import RECORD, Run, load_history, load_test_set
from xbp.testing.certificate import Certificate, Row
from xbp.training import CSVLogger, load_model, load_weights, save_weights
from xbp.training.files.checkpoints import open_checkpoint

EXPECTED = json.loads((FILES / "expected.json").read_text(encoding="utf-8"))
LOOSE = ROUNDING["float32"]


@pytest.fixture(params=["accelerators", "references"])
def _either(request: pytest.FixtureRequest) -> Iterator[None]:
    if request.param == "accelerators":
        yield
    else:
        with disabled():
            yield


def rounding_of(model: nn.Layer) -> float:
    return ROUNDING[model.parameters()[0].data.dtype.name]


# --- weights -------------------------------------------------------------------------------------


@pytest.mark.usefixtures("_either")
@pytest.mark.parametrize("name", [*MODELS, *NAMED])
def test_weights_give_what_they_gave(name: str, tmp_path: Path) -> None:
    path = unpacked(FILES / "weights" / f"{name}.safetensors", tmp_path)
    make, x = (MODELS | NAMED)[name]
    if name in NAMED:
        model = load_model(path)
        assert repr(model) == repr(make())
    else:
        model = make()
        model.load_state_dict(load_weights(path))
    (dtype,) = {a.dtype.name for a in read(path)[1].values()}
    assert {p.data.dtype.name for p in model.parameters()} == {dtype}
    wanted = np.asarray(EXPECTED["outputs"][name], dtype)
    assert_same(model(x), wanted, ROUNDING[dtype])


@pytest.mark.parametrize("name", [*MODELS, *NAMED])
def test_weights_are_written_as_they_were(name: str, tmp_path: Path) -> None:
    old = unpacked(FILES / "weights" / f"{name}.safetensors", tmp_path)
    model = load_model(old) if name in NAMED else MODELS[name][0]()
    model.load_state_dict(load_weights(old))
    new = tmp_path / "new.safetensors"
    save_weights(model.state_dict(), new, model=model if name in NAMED else None)
    assert_same_file(new, old, 0.0)


@pytest.mark.parametrize("name", MODELS)
def test_the_same_seed_gives_the_same_initial_weights(name: str) -> None:
    """These models' files have untrained weights."""
    initial = MODELS[name][0]().state_dict()
    assert_same(initial, read(FILES / "weights" / f"{name}.safetensors")[1], 0.0)


def test_a_file_of_others() -> None:
    (a,) = load_weights(FILES / "weights" / "of_others.safetensors").values()
    assert a.tolist() == [[-1.0, 0.6328125, 0.2578125], [-0.1171875, -0.4921875, -0.8671875]]


# --- random numbers ------------------------------------------------------------------------------


def test_shuffles_are_those_of_then() -> None:
    assert [permutation(*order).tolist() for order in ORDERS] == EXPECTED["orders"]


@pytest.mark.parametrize("index", range(len(DRAWS)))
def test_random_bits_and_masks_are_those_of_then(index: int) -> None:
    seed, step, n = DRAWS[index]
    stream = RandomStream(seed, step=step)
    bits = [stream.bits((n,), like=np.zeros(1)).tolist() for _ in range(2)]
    assert bits == EXPECTED["bits"][index]
    stream.advance(step)
    for draw in bits:
        y, _ = nn.Dropout(0.25).forward(np.ones(n), training=True, rng=stream)
        assert (y > 0).tolist() == [word >= 2**30 for word in draw]


# --- trainings -----------------------------------------------------------------------------------


@pytest.mark.usefixtures("_either")
@pytest.mark.parametrize("name", TRAININGS)
def test_a_training_from_the_start_writes_what_it_wrote(name: str, tmp_path: Path) -> None:
    """Checkpoints, in the middle and at the end: every name, shape, dtype, count and text."""
    training, files = TRAININGS[name], FILES / "trainings" / name
    trainer = training.run(tmp_path)
    steps, rounding = trainer.optimizer.steps, rounding_of(trainer.model)
    assert steps == training.epochs * training.steps_per_epoch()
    assert_same_file(checkpoint(tmp_path, training.middle), files / "middle.safetensors", rounding)
    assert_same_file(checkpoint(tmp_path, steps), files / "end.safetensors", rounding)
    if (files / "log.csv").exists():
        assert_same(rows(tmp_path / "log.csv"), rows(files / "log.csv"), rounding)


@pytest.mark.usefixtures("_either")
@pytest.mark.parametrize("name", TRAININGS)
def test_a_checkpoint_goes_on_to_the_same_end(name: str, tmp_path: Path) -> None:
    """Uninterrupted, and interrupted elsewhere: both equal, bit for bit."""
    training, files = TRAININGS[name], FILES / "trainings" / name
    ends = []
    for folder in (tmp_path / "once", tmp_path / "twice"):
        folder.mkdir()
        shutil.copy(files / "middle.safetensors", checkpoint(folder, training.middle))
        if (files / "log.csv").exists():
            shutil.copy(files / "log.csv", folder)
        if folder.name == "twice":
            stopped = training.run(folder, resume=folder, until=training.middle + 1)
            assert stopped.history.stopped == "interrupted"
            assert stopped.optimizer.steps == training.middle + 1
            assert stopped.optimizer.steps % training.steps_per_epoch()
        trainer = training.run(folder, resume=folder)
        ends.append(checkpoint(folder, trainer.optimizer.steps))
    assert_same_file(ends[0], files / "end.safetensors", rounding_of(trainer.model))
    assert_same_file(ends[0], ends[1], 0.0)
    if (files / "log.csv").exists():
        logs = [(end.parent / "log.csv").read_bytes() for end in ends]
        assert logs[0] == logs[1]
        assert_same(rows(ends[0].parent / "log.csv"), rows(files / "log.csv"), LOOSE)


def test_a_checkpoint_goes_on_to_the_same_bits_where_no_sum_has_two_terms(tmp_path: Path) -> None:
    training, files = TRAININGS[EXACT], FILES / "trainings" / EXACT
    shutil.copy(files / "middle.safetensors", checkpoint(tmp_path, training.middle))
    with disabled():  # compiled kernels may round a product and a sum at once
        trainer = training.run(tmp_path, resume=tmp_path)
    assert_same_file(checkpoint(tmp_path, trainer.optimizer.steps), files / "end.safetensors", 0.0)


@pytest.mark.parametrize("name", ["adam", "momentum", "rnn", "1998"])
def test_a_checkpoint_goes_on_on_another_backend(name: str, tmp_path: Path) -> None:
    pytest.importorskip("array_api_strict")
    training, files = TRAININGS[name], FILES / "trainings" / name
    shutil.copy(files / "middle.safetensors", checkpoint(tmp_path, training.middle))
    if (files / "log.csv").exists():
        shutil.copy(files / "log.csv", tmp_path)
    with xbp.use_backend("array_api_strict"):
        trainer = training.run(tmp_path, resume=tmp_path)
    got, wanted = (
        read(checkpoint(tmp_path, trainer.optimizer.steps)),
        read(files / "end.safetensors"),
    )
    assert got[0].pop("backend") == "array_api_strict"
    assert wanted[0].pop("backend") == "numpy"
    assert_same(list(got), list(wanted), rounding_of(training.model()))


@pytest.mark.parametrize("change", [{"seed": 6}, {"model": partial(dense, p=0.4375)}])
def test_another_training_is_not_taken_for_the_same(change: dict[str, Any], tmp_path: Path) -> None:
    """Other shuffles or masks give differences far larger than rounding."""
    training = TRAININGS["momentum"]._replace(**change)
    training.run(tmp_path)
    _, got = read(checkpoint(tmp_path, training.middle))
    _, wanted = read(FILES / "trainings" / "momentum" / "middle.safetensors")
    assert max(distance(got[n], wanted[n]) for n in got if n.startswith("model.")) > 1e-3


def test_the_optimizers_are_all_here() -> None:
    described = set()
    for name in TRAININGS:
        document, _ = read(FILES / "trainings" / name / "end.safetensors")
        described.add(document["run"]["the optimizer"].partition("(")[0])
    known = {name for name, kind in vars(optim).items() if isinstance(kind, type)}
    rules = {name for name in known if issubclass(getattr(optim, name), optim.Optimizer)}
    assert described == rules - {"Optimizer"} - {"Lion", "LAMB", "Muon"}  # younger than the files


def rows(path: Path) -> list[dict[str, float]]:
    """A history, read without xbp."""
    with path.open(newline="", encoding="utf-8") as file:
        return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]


def test_a_log_is_added_to(tmp_path: Path) -> None:
    old = FILES / "trainings" / "adam" / "log.csv"
    log = Path(shutil.copy(old, tmp_path))
    training = TRAININGS["adam"]._replace(
        epochs=1, callbacks=lambda folder: [CSVLogger(log, append=True)]
    )
    training.run(tmp_path / "checkpoints")
    assert log.read_bytes().startswith(old.read_bytes())
    found = rows(log)
    assert [row["epoch"] for row in found] == [1, 2, 3, 1]
    assert_same(found[3], found[0], LOOSE)
    assert all(list(row) == list(found[0]) for row in found)


# --- what the command line leaves ----------------------------------------------------------------


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Run ``xbp …`` in this process."""

    def run(*arguments: object) -> None:
        monkeypatch.setattr(sys, "argv", ["xbp", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        assert not end.value.code

    monkeypatch.delenv("XBP_BACKEND", raising=False)
    with xbp.use_backend("numpy"):
        yield run


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """The folder of a run of `CLI`."""
    folder = Path(shutil.copytree(FILES / "run", tmp_path / "run"))
    unpacked(folder / "model.safetensors", folder)
    return folder


def test_the_record_of_a_run_is_read_and_written_as_it_was(finished: Path, tmp_path: Path) -> None:
    run = Run.load(finished)
    assert (run.epochs, run.images, run.test_images, run.stopped) == (
        *(2, 100, 10_000),
        "all 2 epochs done",
    )
    run.save(tmp_path)
    assert (tmp_path / RECORD).read_bytes() == (finished / RECORD).read_bytes()


def test_the_history_of_a_run_is_read_and_written_as_it_was(finished: Path, tmp_path: Path) -> None:
    history = load_history(finished)
    assert_same(history.records, rows(finished / "history.csv"), 0.0)
    for record in history.records:
        record["epoch"] = int(record["epoch"])
    history.to_csv(tmp_path / "history.csv")
    assert (tmp_path / "history.csv").read_bytes() == (finished / "history.csv").read_bytes()


def test_the_weights_of_a_run_have_the_test_accuracy_of_its_history(finished: Path) -> None:
    model, last = load_model(finished / "model.safetensors"), load_history(finished).records[-1]
    x, y = load_test_set(Run.load(finished), None)
    optimizer = optim.SGD(model.parameters(), 0.1)
    trainer = xbp.Trainer(model, nn.CrossEntropyLoss(), optimizer, ["accuracy"], rng=0)
    found = trainer.evaluate(xbp.datasets.standardize_images(x), y)
    assert_same(found["loss"], last["val_loss"], LOOSE)
    assert abs(found["accuracy"] - last["val_accuracy"]) <= 2 / len(y)  # images on the border


def test_the_page_of_a_run_is_made(finished: Path, command: Any) -> None:
    for package in ("jinja2", "matplotlib"):
        pytest.importorskip(package)
    command("report", finished)
    assert "xbp train lenet5 --epochs 2" in (finished / "report.html").read_text(encoding="utf-8")


def test_a_run_of_the_command_line_goes_on(
    tmp_path: Path, command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Options, data, shuffles, masks and final files are those of that version."""
    old = FILES / "interrupted"
    monkeypatch.setattr(xbp.models, "LeNet5", small28)
    folder = tmp_path / "run"
    shutil.copytree(old / "checkpoints", folder / "checkpoints")
    last = open_checkpoint(folder / "checkpoints")
    assert last is not None and last.steps == CLI_MIDDLE
    command("train", "lenet5", "--resume", folder)
    assert_same(rows(folder / "history.csv"), rows(old / "end.history.csv"), LOOSE)
    assert_same_file(folder / "model.safetensors", old / "end.model.safetensors", LOOSE)
    got, wanted = (
        json.loads(path.read_text(encoding="utf-8"))
        for path in (folder / "run.json", old / "end.run.json")
    )
    assert list(got) == list(wanted)
    for key in ("title", "classes", "seed", "epochs", "batch_size", "images", "stopped"):
        assert got[key] == wanted[key], key


# --- files for others ----------------------------------------------------------------------------


def test_onnx_is_written_as_it_was(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("ndonnx")
    from xbp.exchange import to_onnx

    make, x = MODELS["small"]
    to_onnx(make(), tmp_path / "small.onnx", (1, 8, 8))
    old, new = (onnx.load(folder / "small.onnx") for folder in (FILES, tmp_path))

    def looks(model: Any) -> list[Any]:
        graph = model.graph
        return [
            [(o.domain, o.version) for o in model.opset_import],
            [str(value.type) + value.name for value in (*graph.input, *graph.output)],
            [[node.op_type, sorted(map(str, node.attribute))] for node in graph.node],
        ]

    assert looks(new) == looks(old)
    weights = [
        {i.name: onnx.numpy_helper.to_array(i) for i in m.graph.initializer} for m in (new, old)
    ]
    assert_same(*weights, 0.0)
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(FILES / "small.onnx", providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {"input": x})
    assert_same(y, np.asarray(EXPECTED["outputs"]["small"], np.float32), LOOSE)


def test_a_certificate_says_what_it_said() -> None:
    text = (FILES / "parity.json").read_text(encoding="utf-8")
    content = json.loads(text)
    names = [field.name for field in dataclasses.fields(Row)]
    rows = [
        Row(**{name: row[name] for name in names} | {"failures": tuple(row["failures"])})
        for row in content["rows"]
    ]
    certificate = Certificate(rows, content["about"], content["backends"])
    again = json.loads(certificate.as_json())
    assert again.pop("legend") and content.pop("legend")
    assert again.pop("title") and again.pop("ranks") == 1  # later keys
    assert_same(again, content, 0.0)
    assert list(again) == list(content)


def test_a_benchmark_says_what_it_said() -> None:
    found = json.loads((FILES / "bench.json").read_text(encoding="utf-8"))
    old = (FILES / "bench.md").read_text(encoding="utf-8")
    numbers = set(re.findall(r"\d[\d.,]*", old.partition("## How to read it")[0]))
    missing = numbers - set(re.findall(r"\d[\d.,]*", markdown(found)))
    assert len(numbers) > 20 and not missing
