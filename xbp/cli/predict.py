"""``xbp predict``: the digit on a picture, or the class of a text."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

import xbp
from xbp.backend import find_backend
from xbp.cli.display import new_table, show
from xbp.cli.files import Module, import_module, prepare_file
from xbp.cli.options import BackendName, Device
from xbp.datasets.labelled_texts import read_text
from xbp.errors import DataError, InputError
from xbp.images import isolate, read_grey
from xbp.models import LeNet5, TextClassifier
from xbp.nn import Layer
from xbp.paths import kind_of, require_folder
from xbp.report.contents import outputs, softmax
from xbp.report.run import RECORD, WEIGHTS, Run
from xbp.report.texts import Lexicon, logits_of
from xbp.training import load_model
from xbp.training.callbacks.progress import percent
from xbp.training.files import write_text

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="A folder that xbp train has written.")]
Files = Annotated[
    list[Path] | None,
    typer.Argument(
        metavar="FILE…",
        help="PNG or JPEG files with one digit each; of a text classifier, files of text.",
    ),
]
Texts = Annotated[
    list[str] | None, typer.Option("--text", help="A text to classify; may be given repeatedly.")
]
JSON = Annotated[
    Path | None,
    typer.Option("--json", help="A file for all probabilities; - is the standard output."),
]

ALTERNATIVES = 2
"""The number of classes shown besides the answer."""

SHOWN = 40
"""Characters of a text in the table."""


def predict(
    folder: Folder,
    files: Files = None,
    text: Texts = None,
    json_file: JSON = None,
    backend: BackendName = "numpy",
    device: Device = None,
    module: Module = None,
) -> None:
    """Print the digits on pictures, or the class of a text, with probabilities.

    A run of xbp train text is given files of text, or --text. Any other run is given pictures:
    drawn or photographed, dark on light or light on dark, in any size, one digit on each, upright,
    and paper around it. What cannot be read gets a sentence, the other files are classified all the
    same, and the exit status is 2. Reading pictures takes Pillow.
    """
    found = find_backend(backend, device=device)
    xbp.set_backend(found.name, device=device)
    if json_file is not None and str(json_file) != "-":
        prepare_file(json_file)
    import_module(module)
    reader = reader_of(folder)
    given: list[Path | str] = [*(files or []), *(text or [])]
    if not given or (text and reader.what != "text"):
        wanted = "files of text, or --text" if reader.what == "text" else "pictures as arguments"
        msg = f"a {type(reader.model).__name__} classifies {reader.what}s; give {wanted}"
        raise InputError(msg)
    answers: list[dict[str, Any]] = []
    for each in given:
        answer: dict[str, Any] = {"file": str(each)} if isinstance(each, Path) else {"text": each}
        try:
            probabilities = reader.classify(each)
        except InputError as error:
            typer.echo(f"Error: {error}", err=True)
            answers.append(answer | {"error": str(error)})
        else:
            best = int(np.argmax(probabilities))
            shares: dict[str, Any] = {
                "probability": float(probabilities[best]),
                "probabilities": probabilities.tolist(),
            }
            if reader.what == "text":
                shares["classes"] = reader.names
            answers.append(answer | {reader.answer: reader.names[best]} | shares)
    read = [answer for answer in answers if reader.answer in answer]
    if json_file is not None and str(json_file) == "-":
        typer.echo(json.dumps(answers, indent=1))
    elif read:
        table = new_table(reader.what, reader.answer, "probability", "or else")
        table.columns[-1].justify = "left"
        for answer in read:
            source = answer.get("file") or shortened(answer["text"])
            others = _alternatives(answer["probabilities"], reader.names)
            said = str(answer[reader.answer])
            table.add_row(source, said, percent(answer["probability"]), others)
        show(table)
    if json_file is not None and str(json_file) != "-":
        write_text(json_file, json.dumps(answers, indent=1) + "\n")
    if len(read) < len(answers):
        raise typer.Exit(2)


@dataclass(frozen=True)
class Reader:
    """A trained classifier, and what it classifies.

    Attributes
    ----------
    model : Layer
    what : {"picture", "text"}
    answer : {"digit", "class"}
    names : list
        What it calls its classes.
    classify : callable ``file or text -> probabilities``
        Raises an InputError where the file cannot be read.
    """

    model: Layer
    what: str
    answer: str
    names: list[Any]
    classify: Callable[[Any], NDArray[np.float64]]


def reader_of(folder: Path) -> Reader:
    """The classifier of a run: of texts; or of images of 28 × 28, LeNet-5 or a user's own.

    A user's own, from `Trainer.save`, is given images that `xbp.datasets.standardize_images` has
    standardized.

    Raises
    ------
    DataError
        There is no such network.
    """
    require_folder(folder, "one that xbp train has written")
    model = load_model(folder / WEIGHTS)
    own = Run.load(folder).sample_shape if kind_of(folder / RECORD) else []
    if isinstance(model, TextClassifier):
        lexicon = Lexicon.load(folder, model)

        def classify_text(given: Path | str) -> NDArray[np.float64]:
            text = read_text(given) if isinstance(given, Path) else given
            return softmax(logits_of(model, lexicon, [text])[0])

        return Reader(model, "text", "class", lexicon.classes, classify_text)
    if not isinstance(model, LeNet5) and own != [1, 28, 28]:
        msg = f"{str(folder / WEIGHTS)!r} holds a {type(model).__name__}; give a folder of LeNet-5"
        raise DataError(msg)
    classes = range(outputs(model, np.zeros((1, 28, 28), np.uint8)).shape[1])
    return Reader(model, "picture", "digit", [*classes], partial(classify, model))


def classify(model: Layer, path: Path) -> NDArray[np.float64]:
    """The probability of each class for the picture in a file.

    Raises
    ------
    InputError
        The file is no picture, or shows no digit.
    """
    grey = read_grey(path)
    try:
        image = isolate(grey)
    except InputError as error:
        msg = f"{str(path)!r} {error}"
        raise DataError(msg) from None
    return softmax(outputs(model, image[None])[0])


def shortened(text: str) -> str:
    """The beginning of a text, on one line."""
    words = " ".join(text.split())
    return words if len(words) <= SHOWN else f"{words[: SHOWN - 1]}…"


def _alternatives(probabilities: list[float], names: list[Any]) -> str:
    """The next best answers, without those that would print as 0."""
    order = np.argsort(probabilities)[::-1][1 : 1 + ALTERNATIVES].tolist()
    shown = [
        f"{names[i]} {percent(probabilities[i])}" for i in order if probabilities[i] >= 0.00005
    ]
    return ", ".join(shown) or "–"
