"""``xbp train …``: train a model, test it, and write the results to a folder."""

from __future__ import annotations

import importlib
import math
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

import xbp
from xbp import nn, optim
from xbp.arguments import choice, integer, number
from xbp.backend import Array, find_backend, to_numpy
from xbp.cli.display import (
    EpochLines,
    Stopwatch,
    class_table,
    model_table,
    peak_memory,
    show,
)
from xbp.cli.files import prepare_folder
from xbp.cli.resume import CHECKPOINTS, checkpoints_of, notes_of, take_options, where_it_goes_on
from xbp.errors import DataError, NonFiniteError
from xbp.models import lenet1998
from xbp.nn.summary import summary
from xbp.report import check_packages, write_report
from xbp.report.run import HISTORY, RECORD, REPORT, WEIGHTS, Run, StepCurve, surroundings
from xbp.training import Callback, Checkpoints, ProgressBar, Trainer, save_weights
from xbp.training.callbacks.progress import on_terminal, percent
from xbp.training.files import replacing
from xbp.training.metrics import len_of
from xbp.training.metrics.confusion import confusion_matrix

app = typer.Typer(no_args_is_help=True, help="Train a model and test it.")

CURVES, CONFUSION = "learning_curves.png", "confusion_matrix.png"
DIVERGED = "diverged.csv"
"""The history of a run whose loss became infinite or nan; other runs write `HISTORY`."""
RESULTS = (HISTORY, WEIGHTS, RECORD, CURVES, CONFUSION, REPORT, DIVERGED)


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
        help="The highest rate of Adam, which rises to it and falls again (one cycle).",
    ),
]
Seed = Annotated[
    int,
    typer.Option(
        help="Of weights and shuffles; the same one, with as many threads, repeats a run exactly."
    ),
]
DType = Annotated[str, typer.Option(help="The type of all numbers: float32 or float64.")]
Limit = Annotated[int | None, typer.Option(help="Use only the first training images.")]
DataDir = Annotated[
    Path | None,
    typer.Option(help="A folder with another set in the four files of MNIST, e.g. Fashion-MNIST."),
]
Classes = Annotated[int, typer.Option(help="How many classes the set has.")]
Activation = Annotated[str, typer.Option(help="After each layer but the last: relu or tanh.")]
Pool = Annotated[str, typer.Option(help="What becomes of 2 × 2 pixels: max or average.")]
Variant = Annotated[
    str | None,
    typer.Option(help="1998 is the network of LeCun et al. and its loss, 60,000 parameters."),
]
Report = Annotated[
    bool, typer.Option("--report", help="Also write report.html, a page that shows the run.")
]
Output = Annotated[Path, typer.Option(help="The folder to write to; older results are replaced.")]


CheckpointEvery = Annotated[
    int | None,
    typer.Option(
        help="Write a checkpoint to the output folder after so many steps and after each epoch."
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


@dataclass(frozen=True)
class Options:
    """The options that all trainings have in common."""

    backend: str
    device: str | None
    epochs: int
    batch_size: int
    lr: float
    seed: int
    dtype: str
    limit: int | None
    data_dir: Path | None
    classes: int
    output: Path
    report: bool
    command: str
    checkpoint_every: int | None
    resume: Path | None
    notes: dict[str, Any]

    def check(self) -> None:
        """Refuse numbers that are out of range, before anything else happens.

        Raises
        ------
        InputError
            The message names the option.
        """
        integer("--epochs", self.epochs, least=1)
        integer("--batch-size", self.batch_size, least=1)
        number("--learning-rate", self.lr, least=0)
        integer("--seed", self.seed, least=0)
        choice("--dtype", self.dtype, ("float32", "float64"))
        if self.limit is not None:
            integer("--limit", self.limit, least=1)
        integer("--classes", self.classes, least=2)
        if self.checkpoint_every is not None:
            integer("--checkpoint-every", self.checkpoint_every, least=1)
        if self.report:
            check_packages()


@app.command()
def lenet5(
    context: typer.Context,
    backend: BackendName = "numpy",
    device: Device = None,
    epochs: Epochs = 6,
    batch_size: BatchSize = 128,
    learning_rate: LearningRate = 0.004,
    seed: Seed = 0,
    dtype: DType = "float32",
    limit: Limit = None,
    data_dir: DataDir = None,
    classes: Classes = 10,
    activation: Activation = "relu",
    pool: Pool = "max",
    variant: Variant = None,
    report: Report = False,
    checkpoint_every: CheckpointEvery = None,
    resume: Resume = None,
    output: Output = Path("runs/lenet5"),
) -> None:
    """Train LeNet-5 to read handwritten digits, and test it.

    The images are the 60,000 and 10,000 of MNIST, which ships with xbp. Shows the model and its
    progress, then the accuracy on the test images, class by class. Writes history.csv,
    model.safetensors, run.json and, with matplotlib, learning_curves.png and confusion_matrix.png.

    Ctrl-C ends training early; the model is still tested and written. With --checkpoint-every, a
    run that was interrupted or killed goes on by --resume, with the result of an uninterrupted one.
    """
    options = Options(
        *(backend, device, epochs, batch_size, learning_rate, seed, dtype),
        *(limit, data_dir, classes, output, report, command_line(context)),
        *(checkpoint_every, resume, notes_of(context)),
    )
    model = partial(xbp.models.LeNet5, activation=activation, pool=pool, variant=variant)
    loss = nn.CrossEntropyLoss() if variant is None else lenet1998.RejectingCrossEntropyLoss()
    train_classifier("LeNet-5", model, loss, (28, 28), options)


def train_classifier(
    title: str,
    make_model: Callable[..., nn.Layer],
    loss: nn.Loss,
    image_size: tuple[int, int],
    options: Options,
) -> None:
    """A whole training, from its options to its files.

    Parameters
    ----------
    title : str
        The name of the model.
    make_model : callable ``(classes, *, dtype, rng) -> Layer``
        The model maps (N, 1, H, W) to logits (N, classes).
    loss : Loss
        Takes such logits and integer labels.
    image_size : (H, W)
        The size of its images.
    options : Options
        The user's options.

    Raises
    ------
    XBPError
        An option or the data are wrong, before training. Or the loss became infinite or nan; then
        the history so far is in `DIVERGED`, and older results are unchanged.
    """
    options.check()
    backend = find_backend(options.backend, device=options.device)
    xbp.set_backend(backend.name, device=options.device)
    model = make_model(options.classes, dtype=options.dtype, rng=options.seed)
    train, test = load(title, image_size, options)
    prepare_folder(options.output, RESULTS)
    started = datetime.now(UTC).isoformat(timespec="seconds")

    typer.echo(f"{title} on {backend}")
    show(model_table(summary(model, (1, *image_size))))
    images, test_images = len_of(train[1]), len_of(test[1])
    typer.echo(f"{images:,} training images, {test_images:,} test images, seed {options.seed}")
    schedule = optim.OneCycleLR(options.lr, options.epochs * -(-images // options.batch_size))
    optimizer = optim.Adam(model.parameters(), schedule)
    trainer = Trainer(model, loss, optimizer, ("accuracy",), rng=options.seed)

    steps = StepCurve()
    # The trainer checks for infinite and nan values, and names the layer.
    with np.errstate(all="ignore"), told_if_diverged(trainer, options):
        rate = fit(trainer, train, test, options, steps)
        logits = trainer.predict(test[0])
        test_loss = float(to_numpy(loss(logits, test[1])[0]))
        if not math.isfinite(test_loss):  # all losses of training were finite
            msg = f"the test loss is {test_loss}; a --learning-rate below {options.lr:g} may help"
            raise NonFiniteError(msg)
    predicted = np.argmax(to_numpy(logits), axis=1)
    matrix = confusion_matrix(test[1], predicted, options.classes)

    seconds, memory = sum(trainer.history.seconds), peak_memory()
    typer.echo("\ntest set, class by class")
    show(class_table(matrix))
    typer.echo(f"test loss {test_loss:.4f}, test accuracy {percent(matrix.trace(), matrix.sum())}")
    if hint := hint_of(matrix, options):
        typer.echo(hint)
    typer.echo(
        f"trained in {seconds:.1f} s, tests after each epoch included, at {rate:,.0f} images/s"
        + (f"; peak memory {memory}" if memory else "")
    )
    run = Run(
        command=options.command,
        title=title,
        classes=options.classes,
        backend=str(backend),
        seed=options.seed,
        epochs=options.epochs,
        batch_size=options.batch_size,
        images=images,
        test_images=test_images,
        data_dir=None if options.data_dir is None else str(options.data_dir.absolute()),
        started=started,
        seconds=trainer.history.seconds,
        rate=rate,
        memory=memory,
        stopped=trainer.history.stopped,
        environment=surroundings(),
        steps=steps.curves,
    )
    write(trainer, matrix, run, options)


def load(
    title: str, image_size: tuple[int, int], options: Options
) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """Training and test data on the current backend, checked against the model.

    Raises
    ------
    DataError
        A file is missing or malformed, or images or labels do not fit the model.
    """
    sets = xbp.datasets.load_mnist(options.data_dir)
    for part, (x, y) in zip(("training", "test"), sets, strict=True):
        where = f"the {part} set" + (f" in {str(options.data_dir)!r}" if options.data_dir else "")
        if len(x) == 0:
            msg = f"{where} is empty; at least one image is needed"
            raise DataError(msg)
        if x.shape[1:] != image_size:
            (h, w), (height, width) = image_size, x.shape[1:]
            msg = (
                f"{where} has images of {height} × {width} pixels, but {title} takes {h} × {w}; "
                "resize them or give another set"
            )
            raise DataError(msg)
        wrong = y[(y < 0) | (y >= options.classes)]
        if wrong.size:
            msg = (
                f"{where} has the label {wrong[0]}, where 0 to {options.classes - 1} were "
                "expected; correct the file, or say with --classes how many classes there are"
            )
            raise DataError(msg)
    (x, y), test = sets
    train = x[: options.limit], y[: options.limit]
    return _place(*train, options.dtype), _place(*test, options.dtype)


def _place(x: NDArray[np.uint8], y: NDArray[Any], dtype: str) -> tuple[Array, Array]:
    return xbp.asarray(xbp.datasets.standardize_images(x, dtype=dtype)), xbp.asarray(y)


@contextmanager
def told_if_diverged(trainer: Trainer, options: Options) -> Iterator[None]:
    """If the loss becomes infinite or nan, write the history so far to `DIVERGED`."""
    try:
        yield
    except NonFiniteError as error:
        if not len(trainer.history):
            raise
        trainer.history.to_csv(options.output / DIVERGED)
        msg = f"{error}; the epochs before are in {str(options.output / DIVERGED)!r}"
        raise NonFiniteError(msg) from None


def fit(
    trainer: Trainer,
    train: tuple[Array, Array],
    test: tuple[Array, Array],
    options: Options,
    *others: Callback,
) -> float:
    """Train, and return the number of images per second."""
    stopwatch = Stopwatch()
    saving = []
    if options.checkpoint_every is not None:
        folder, monitor = options.output / CHECKPOINTS, "val_loss"
        every, notes = options.checkpoint_every, options.notes
        saving = [Checkpoints(folder, every, monitor=monitor, notes=notes)]
    if options.resume is not None:
        typer.echo(where_it_goes_on(options.resume, xbp.get_backend().name))
    history = trainer.fit(
        *train,
        epochs=options.epochs,
        batch_size=options.batch_size,
        validation_data=test,
        callbacks=[
            *(stopwatch, *others, *saving),
            ProgressBar() if on_terminal() else EpochLines(),
        ],
        verbose=False,
        resume=options.resume and checkpoints_of(options.resume),
    )
    if trainer.epochs_done < options.epochs:
        typer.echo(f"training ended early: {history.stopped}")
    # The last batch of an epoch may be smaller.
    rest = stopwatch.steps - trainer.epochs_done * trainer.steps_per_epoch
    images = trainer.epochs_done * len_of(train[1]) + rest * options.batch_size
    return images / stopwatch.seconds


def write(trainer: Trainer, matrix: NDArray[np.int64], run: Run, options: Options) -> None:
    """Write all files of a run, remove those of an older one, and print a line with their names."""
    folder = options.output
    trainer.history.to_csv(folder / HISTORY)
    save_weights(trainer.model.state_dict(), folder / WEIGHTS, model=trainer.model)
    run.save(folder)
    written = [HISTORY, WEIGHTS, RECORD]
    try:
        importlib.import_module("matplotlib.backends.backend_agg")
    except Exception:  # matplotlib is missing or broken, which must not lose a training
        typer.echo("pip install matplotlib would add pictures: learning curves, confusion matrix")
    else:
        from xbp.training.plots import plot_confusion_matrix, plot_learning_curves

        curves = plot_learning_curves(trainer.history, validation="test")
        for name, figure in ((CURVES, curves), (CONFUSION, plot_confusion_matrix(matrix))):
            with replacing(folder / name) as path:
                figure.savefig(path, format="png")
            written.append(name)
    if options.report:
        write_report(folder, folder / REPORT)
        written.append(REPORT)
    for name in RESULTS:
        if name not in written:
            (folder / name).unlink(missing_ok=True)
    typer.echo(f"wrote {', '.join(written)} to {folder}")


def hint_of(matrix: NDArray[np.int64], options: Options) -> str:
    """Advice if the model is no better than a constant answer; otherwise empty."""
    commonest = matrix.sum(axis=1).max()
    if matrix.trace() > commonest:
        return ""
    share = percent(commonest, matrix.sum())
    return (
        f"the model has learned nothing that helps: one who always says the same class is right for"
        f" {share}; try a --learning-rate below {options.lr:g}, or more images or epochs"
    )


def command_line(context: typer.Context) -> str:
    """The command that repeats this run: the options that differ from defaults, and the seed.

    For a resumed run, it repeats the whole run.
    """
    words = context.command_path.split()
    for parameter in context.command.params:
        value = context.params.get(parameter.name or "")
        if parameter.name == "resume":  # repeating starts from the beginning
            continue
        if value is None or parameter.name == "resume":
            continue
        if value == parameter.default and parameter.name != "seed":
            continue
        words += [parameter.opts[0]] if value is True else [parameter.opts[0], str(value)]
    return shlex.join(words)
