"""``xbp export``: a trained model as an ONNX file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from xbp import models, nn
from xbp.backend import use_backend
from xbp.cli.files import Module, import_module, prepare_file
from xbp.errors import DataError
from xbp.exchange import Exported, to_onnx
from xbp.paths import kind_of
from xbp.report.run import RECORD, Run
from xbp.training import load_model
from xbp.training.files.checkpoints import open_checkpoint

WEIGHTS = "model.safetensors"

Source = Annotated[
    Path,
    typer.Argument(
        metavar="DIR_OR_WEIGHTS",
        help="A folder that xbp train has written, or a .safetensors file of weights.",
    ),
]
ONNX = Annotated[Path, typer.Option("--onnx", metavar="FILE", help="The ONNX file to write.")]
BatchSize = Annotated[
    int | None, typer.Option(help="Samples in a batch; by default the file takes any number.")
]


def export(source: Source, onnx: ONNX, batch_size: BatchSize = None, module: Module = None) -> None:
    """Write a trained model as an ONNX file, which runs without Python or xbp.

    The file is for inference. If onnxruntime is installed, it is run there on random input, and the
    largest difference from xbp is printed. It needs the packages of pip install
    "xbackprop[onnx]".
    """
    prepare_file(onnx)
    import_module(module)
    with use_backend("numpy"):
        model = load_model(weights_of(source))
        exported = to_onnx(model, onnx, shape_in(source, model), batch_size=batch_size)
    for line in description(exported):
        typer.echo(line)
    typer.echo(f"wrote {onnx}")


def weights_of(source: Path) -> Path:
    """The file of weights: in a folder, those of the finished training are preferred.

    Raises
    ------
    DataError
        The folder has none.
    """
    if kind_of(source) != "a folder":
        return source
    if kind_of(source / WEIGHTS):
        return source / WEIGHTS
    last = open_checkpoint(source)
    if last is None:
        msg = f"{str(source)!r} holds no {WEIGHTS}; give a folder that xbp train has written"
        raise DataError(msg)
    return last.file.path


def shape_in(source: Path, model: nn.Layer) -> tuple[int, ...]:
    """The shape of one sample: what a run that `Trainer.save` has written says, or the model."""
    if kind_of(source) == "a folder" and kind_of(source / RECORD):
        shape = Run.load(source).sample_shape
        if shape:
            return tuple(shape)
    return sample_shape(model)


def sample_shape(model: nn.Layer) -> tuple[int, ...]:
    """The shape of one sample, for models that a file can name."""
    if isinstance(model, models.MLP) and isinstance(model[0], nn.Linear):
        return (model[0].in_features,)
    if isinstance(model, models.ResNet | models.VGG):
        return (model.arguments["channels"], 32, 32)
    if isinstance(model, models.FastCIFAR):
        return (3, 32, 32)
    if isinstance(model, models.GPT):
        return (model.context,)
    if isinstance(model, models.TextClassifier):
        msg = "a text classifier reads texts of any length; give the run's folder, which says one"
        raise DataError(msg)
    return (1, 28, 28)


def description(exported: Exported) -> list[str]:
    """The exported file, and its difference from the model, as a sentence."""
    nodes = ", ".join(
        f"{count} {name}" for name, count in exported.nodes.items() if name != "Constant"
    )
    lines = [
        f"input {_written(exported.input_shape)}, output {_written(exported.output_shape)}, "
        f"{exported.dtype}, ONNX operators of version {exported.opset}",
        f"nodes: {nodes}",
    ]
    if exported.difference is None:
        lines.append("not compared, for onnxruntime is missing; pip install onnxruntime")
    else:
        lines.append(
            f"in onnxruntime outputs differ from xbp's by {exported.difference:.1e} at most, "
            f"where the largest is {exported.largest:.2g}"
        )
    return lines


def _written(shape: tuple[int | str, ...]) -> str:
    return f"({', '.join(map(str, shape))})"
