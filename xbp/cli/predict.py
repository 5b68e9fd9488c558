"""``xbp predict``: which digit is on a picture?"""

from __future__ import annotations

import json
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
from xbp.errors import DataError, InputError
from xbp.images import isolate, read_grey
from xbp.models import LeNet5
from xbp.nn import Layer
from xbp.paths import kind_of, require_folder
from xbp.report.contents import outputs, softmax
from xbp.report.run import RECORD, WEIGHTS, Run
from xbp.training import load_model
from xbp.training.callbacks.progress import percent
from xbp.training.files import write_text

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="A folder that xbp train has written.")]
Files = Annotated[
    list[Path], typer.Argument(metavar="IMAGE…", help="PNG or JPEG files with one digit each.")
]
JSON = Annotated[
    Path | None,
    typer.Option("--json", help="A file for all probabilities; - is the standard output."),
]

ALTERNATIVES = 2
"""The number of digits shown besides the answer."""


def predict(
    folder: Folder,
    images: Files,
    json_file: JSON = None,
    backend: BackendName = "numpy",
    device: Device = None,
    module: Module = None,
) -> None:
    """Say which digits are on pictures, and how probable that is.

    Drawn or photographed, dark on light or light on dark, in any size: one digit on each picture,
    upright, and paper around it. What cannot be read gets a sentence, the other pictures are
    classified all the same, and the exit status is 2. Reading pictures takes Pillow.
    """
    found = find_backend(backend, device=device)
    xbp.set_backend(found.name, device=device)
    if json_file is not None and str(json_file) != "-":
        prepare_file(json_file)
    import_module(module)
    model = load_classifier(folder)
    answers: list[dict[str, Any]] = []
    for path in images:
        try:
            probabilities = classify(model, path)
        except InputError as error:
            typer.echo(f"Error: {error}", err=True)
            answers.append({"file": str(path), "error": str(error)})
        else:
            digit = int(np.argmax(probabilities))
            shares = {
                "probability": float(probabilities[digit]),
                "probabilities": probabilities.tolist(),
            }
            answers.append({"file": str(path), "digit": digit} | shares)
    read = [answer for answer in answers if "digit" in answer]
    if json_file is not None and str(json_file) == "-":
        typer.echo(json.dumps(answers, indent=1))
    elif read:
        table = new_table("picture", "digit", "probability", "or else")
        table.columns[-1].justify = "left"
        for answer in read:
            others = _alternatives(answer["probabilities"])
            table.add_row(
                answer["file"], f"{answer['digit']}", percent(answer["probability"]), others
            )
        show(table)
    if json_file is not None and str(json_file) != "-":
        write_text(json_file, json.dumps(answers, indent=1) + "\n")
    if len(read) < len(answers):
        raise typer.Exit(2)


def load_classifier(folder: Path) -> Layer:
    """The network of a run, for images of 28 × 28: LeNet-5, or a user's own from `Trainer.save`.

    That one is given images that `xbp.datasets.standardize_images` has standardized.

    Raises
    ------
    DataError
        There is no such network.
    """
    require_folder(folder, "one that xbp train has written")
    model = load_model(folder / WEIGHTS)
    own = Run.load(folder).sample_shape if kind_of(folder / RECORD) else []
    if not isinstance(model, LeNet5) and own != [1, 28, 28]:
        msg = f"{str(folder / WEIGHTS)!r} holds a {type(model).__name__}; give a folder of LeNet-5"
        raise DataError(msg)
    return model


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


def _alternatives(probabilities: list[float]) -> str:
    """The next best answers, without those that would print as 0."""
    order = np.argsort(probabilities)[::-1][1 : 1 + ALTERNATIVES].tolist()
    shown = [f"{i} {percent(probabilities[i])}" for i in order if probabilities[i] >= 0.00005]
    return ", ".join(shown) or "–"
