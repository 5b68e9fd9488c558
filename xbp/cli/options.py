"""The options of ``xbp train``: their types, their checks, and the command that repeats them."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import typer

from xbp.arguments import choice, integer, number
from xbp.cli.resume import notes_of, take_options
from xbp.primitives.reduced import PRECISIONS
from xbp.report import check_packages

BackendName = Annotated[
    str,
    typer.Option(
        "--backend",
        envvar="XBP_BACKEND",
        help="Where to compute: numpy, cupy, torch or array_api_strict; see xbp info.",
    ),
]
Device = Annotated[
    str | None, typer.Option(help="A device of the backend, e.g. cuda:1; by default its own.")
]
Epochs = Annotated[int, typer.Option(help="How often to go through the training images.")]
BatchSize = Annotated[int, typer.Option(help="Images in one step.")]
LearningRate = Annotated[
    float,
    typer.Option(
        "--learning-rate",
        "--lr",
        help="The highest learning rate, to which it rises before it falls again (one cycle).",
    ),
]
Seed = Annotated[
    int,
    typer.Option(
        help="Of weights and shuffles; the same one, with as many threads, repeats a run exactly."
    ),
]
DType = Annotated[str, typer.Option(help="The type of all numbers: float32 or float64.")]
Precision = Annotated[
    str,
    typer.Option(
        help="The format of the factors of products in training: float32, tf32, bfloat16 or "
        "float16. Sums, parameters and the test keep the type of all numbers."
    ),
]
Limit = Annotated[
    int | None, typer.Option(help="Use only the first training images; the test is on all.")
]
DataDir = Annotated[
    Path | None,
    typer.Option(help="A folder with another set in the four files of MNIST, e.g. Fashion-MNIST."),
]
CifarDir = Annotated[
    Path | None,
    typer.Option(
        "--data-dir",
        help="The folder with CIFAR-10's binary files; by default where xbp data fetch cifar10 "
        "puts them.",
    ),
]
Shortcut = Annotated[
    str, typer.Option(help="Where the shape changes: A, zeros as channels, or B, a convolution.")
]
Mirror = Annotated[
    bool,
    typer.Option(
        "--mirror/--no-mirror",
        help="Whether the last test takes the mean of the outputs for each image and its mirror "
        "image; those after each epoch never do.",
    ),
]
Shift = Annotated[
    int,
    typer.Option(
        help="The last test also moves each image by so many pixels, both ways; 0 for not at all."
    ),
]
Classes = Annotated[int, typer.Option(help="How many classes the set has.")]
Activation = Annotated[str, typer.Option(help="After each layer but the last: relu or tanh.")]
Pool = Annotated[str, typer.Option(help="What becomes of 2 × 2 pixels: max or average.")]
Variant = Annotated[
    str | None,
    typer.Option(help="1998 is the network of LeCun et al. and its loss, 60,000 parameters."),
]
Channels = Annotated[
    int, typer.Option(help="Those of the first stage; the last ones have 8 times as many.")
]
Text = Annotated[
    Path, typer.Option("--text", help="The text to learn from; its last tenth is the test.")
]
LabelledTexts = Annotated[
    Path,
    typer.Option(
        "--texts",
        help="A .csv or .tsv file with the columns text and label, or a folder with a folder of "
        ".txt files for each class.",
    ),
]
TestTexts = Annotated[
    Path | None,
    typer.Option(
        "--test", help="The same for the test; by default a tenth of the texts, drawn by the seed."
    ),
]
Words = Annotated[int, typer.Option(help="The largest vocabulary; rarer words are all alike.")]
Length = Annotated[int, typer.Option(help="How many words of each text are read.")]
Hidden = Annotated[int, typer.Option(help="Features of the state of the LSTM.")]
Deep = Annotated[int, typer.Option("--layers", help="LSTMs one above the other.")]
Bidirectional = Annotated[
    bool, typer.Option("--bidirectional", help="Also read each text from its end.")
]
TextLimit = Annotated[
    int | None,
    typer.Option("--limit", help="Use only the first training texts; the test is whole."),
]
TextsAtOnce = Annotated[int, typer.Option("--batch-size", help="Texts in one step.")]
Unit = Annotated[str, typer.Option(help="What a token is: characters or bytes.")]
Steps = Annotated[int, typer.Option(help="How many batches to learn from.")]
Layers = Annotated[int, typer.Option(help="Blocks of attention and feed-forward network.")]
Heads = Annotated[int, typer.Option(help="Heads of each attention; they divide the width.")]
Width = Annotated[int, typer.Option(help="Features of each token.")]
Context = Annotated[int, typer.Option("--context", help="How many tokens the network sees.")]
Dropout = Annotated[float, typer.Option(help="The probability that a feature is dropped.")]
Windows = Annotated[int, typer.Option("--batch-size", help="Windows of the text in one step.")]
CharacterLimit = Annotated[
    int | None, typer.Option("--limit", help="Use only the first tokens of the text.")
]
Report = Annotated[
    bool, typer.Option("--report", help="Also write report.html, a page that shows the run.")
]
Output = Annotated[Path, typer.Option(help="The folder to write to; older results are replaced.")]


Weights = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Begin with the weights in this file, such as the model.safetensors of an earlier "
        "run, in place of random ones.",
    ),
]
CheckpointEvery = Annotated[
    int | None,
    typer.Option(
        help="Write a checkpoint to the output folder after each N steps and after each epoch."
    ),
]
Resume = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        is_eager=True,
        callback=take_options,
        help="Go on with the run in this output folder, from its last checkpoint. Options that "
        "are not given are those of that run.",
    ),
]


Ranks = Annotated[
    int | None,
    typer.Option(
        help="Train in this many processes, each with a share of every batch and of the cores (or "
        "with a GPU of its own): the same numbers, up to rounding. Needs mpi4py and an MPI."
    ),
]


PATHS = ("output", "resume", "data_dir", "weights")


@dataclass(frozen=True)
class Options:
    """The options that all trainings have in common; `Options.of` takes them from the command."""

    backend: str
    device: str | None
    batch_size: int
    learning_rate: float
    seed: int
    dtype: str
    output: Path
    report: bool
    checkpoint_every: int | None
    resume: Path | None
    ranks: int | None
    command: str
    notes: dict[str, Any]
    epochs: int = 1
    limit: int | None = None
    data_dir: Path | None = None
    classes: int = 10
    mirror: bool = False
    shift: int = 0
    weights: Path | None = None
    precision: str = "float32"

    @classmethod
    def of(cls, context: typer.Context) -> Options:
        """The options of a command, by the names of its parameters."""
        names = {field.name for field in fields(cls)}
        given = {name: value for name, value in context.params.items() if name in names}
        for name in PATHS:  # strings in earlier versions of typer
            if given.get(name) is not None:
                given[name] = Path(given[name])
        return cls(**given, command=command_line(context), notes=notes_of(context))

    def check(self) -> None:
        """Refuse numbers that are out of range, before anything else happens.

        Raises
        ------
        InputError
            The message names the option.
        """
        integer("--epochs", self.epochs, least=1)
        integer("--batch-size", self.batch_size, least=1)
        number("--learning-rate", self.learning_rate, least=0)
        integer("--seed", self.seed, least=0)
        choice("--dtype", self.dtype, ("float32", "float64"))
        choice("--precision", self.precision, PRECISIONS)
        if self.limit is not None:
            integer("--limit", self.limit, least=1)
        integer("--classes", self.classes, least=2)
        integer("--shift", self.shift, least=0)
        if self.checkpoint_every is not None:
            integer("--checkpoint-every", self.checkpoint_every, least=1)
        if self.ranks is not None:
            integer("--ranks", self.ranks, least=1)
        if self.report:
            check_packages()


def command_line(context: typer.Context) -> str:
    """The command that repeats this run: the options that differ from defaults, and the seed.

    For a resumed run, it repeats the whole run.
    """
    words = context.command_path.split()
    for parameter in context.command.params:
        value = context.params.get(parameter.name or "")
        if value is None or parameter.name == "resume":  # repeating starts from the beginning
            continue
        if value == parameter.default and parameter.name != "seed":
            continue
        if isinstance(value, bool):
            words += (parameter.opts if value else parameter.secondary_opts)[:1]
        else:
            words += [parameter.opts[0], str(value)]
    return shlex.join(words)
