"""Train a network that classifies images or texts, and test it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import typer
from numpy.typing import NDArray

import xbp
from xbp import optim
from xbp.backend import Backend, to_numpy
from xbp.cli.display import class_table, model_table, peak_memory, show
from xbp.cli.files import prepare_folder
from xbp.cli.fitting import RESULTS, fit, told_if_diverged, write
from xbp.cli.networks import PREPARED, Network
from xbp.cli.options import Options
from xbp.cli.ranks import first, ready
from xbp.errors import DataError, InputError, NonFiniteError
from xbp.nn import Layer, Loss
from xbp.nn.summary import LayerSummary, summary
from xbp.parallel import Group
from xbp.report.run import Run, StepCurve, surroundings
from xbp.training import Trainer, load_weights
from xbp.training.callbacks.progress import percent
from xbp.training.metrics.confusion import confusion_matrix


@dataclass(frozen=True)
class Task:
    """A classifier and its data, ready for training.

    Attributes
    ----------
    title : str
        The name of the model.
    model : Layer
    layers : list of LayerSummary
        The rows of the model's table.
    make_optimizer : callable ``(model, schedule) -> Optimizer``
    loss : Loss
    train, test : source, or (x, y)
    count : int
        The number of samples for training.
    test_labels : numpy array (N,) of int
    classes : int
    samples : str
        What samples are called: ``"images"``.
    name : callable ``label -> str``
    data, data_dir, sample_shape
        See `Run`.
    augment : callable, optional
        See `Trainer.fit`.
    texts : dict
        Further files of the run, by name.
    """

    title: str
    model: Layer
    layers: list[LayerSummary]
    make_optimizer: Callable[[Layer, optim.OneCycleLR], optim.Optimizer]
    loss: Loss
    train: Any
    test: Any
    count: int
    test_labels: NDArray[Any]
    classes: int
    samples: str
    name: Callable[[int], str]
    data: str
    data_dir: str | None
    sample_shape: list[int] = field(default_factory=list)
    augment: Callable[..., Any] | None = None
    texts: dict[str, str] = field(default_factory=dict)


def train_classifier(network: Network, options: Options) -> None:
    """A whole training on images, from its options to its files.

    Parameters
    ----------
    network : Network
    options : Options
        The user's options.

    Raises
    ------
    XBPError
        An option or the data are wrong, before training. Or the loss became infinite or nan; then
        the history so far is in `DIVERGED`, and older results are unchanged.
    """
    size = min(network.image_shape[1:])
    if options.shift >= size:
        msg = f"--shift must be less than the size of an image, {size}, got {options.shift}"
        raise InputError(msg)
    backend, group = ready(options)
    model = network.make_model(options.classes, dtype=options.dtype, rng=options.seed)
    splits = network.load(options)
    (_, labels), (_, test_labels) = splits
    train, test = (network.given(split, options.dtype) for split in splits)
    if network.prepare is not None:
        images = network.images.standardized(splits[0][0][:PREPARED], options.dtype)
        network.prepare(model, images)
    if options.weights is not None and options.resume is None:
        begin_with(model, options.weights)
    task = Task(
        title=network.title,
        model=model,
        layers=summary(model, network.image_shape),
        make_optimizer=network.make_optimizer,
        loss=network.loss,
        train=train,
        test=test,
        count=len(labels),
        test_labels=test_labels,
        classes=options.classes,
        samples="images",
        name=network.images.name,
        data=network.set_name,
        data_dir=None if options.data_dir is None else str(options.data_dir.absolute()),
        augment=network.augment,
    )
    perform(task, options, backend, group)


def begin_with(model: Layer, path: Path) -> None:
    """Give a model the weights in a file.

    Raises
    ------
    DataError
        The file is missing or malformed, or belongs to another model.
    """
    state = load_weights(path)
    try:
        model.load_state_dict(state)
    except InputError as error:
        msg = f"{str(path)!r} holds no weights of this model: {error}"
        raise DataError(msg) from None


def perform(task: Task, options: Options, backend: Backend, group: Group | None) -> None:
    """Train, test, and write the files of the run; see `train_classifier`."""
    prepare_folder(options.output, RESULTS)
    started = datetime.now(UTC).isoformat(timespec="seconds")

    typer.echo(f"{task.title} on {backend}")
    show(model_table(task.layers))
    tests = len(task.test_labels)
    typer.echo(
        f"{task.count:,} training {task.samples}, {tests:,} test {task.samples}, "
        f"seed {options.seed}"
    )
    schedule = optim.OneCycleLR(
        options.learning_rate, options.epochs * -(-task.count // options.batch_size)
    )
    optimizer = task.make_optimizer(task.model, schedule)
    pieces = (task.model, task.loss, optimizer, ("accuracy",))
    trainer = Trainer(*pieces, rng=options.seed, group=group, precision=options.precision)

    steps = StepCurve()
    # The trainer checks for infinite and nan values, and names the layer.
    with np.errstate(all="ignore"), told_if_diverged(trainer, options, group):
        rate = fit(trainer, task.train, task.test, options, steps, augment=task.augment)
        given = task.test[0] if isinstance(task.test, tuple) else task.test
        logits = trainer.predict(given, mirror=options.mirror, shift=options.shift)
        test_loss = float(to_numpy(task.loss(logits, xbp.asarray(task.test_labels))[0]))
        if not math.isfinite(test_loss):  # all losses of training were finite
            advice = f"a --learning-rate below {options.learning_rate:g} may help"
            msg = f"the test loss is {test_loss}; {advice}"
            raise NonFiniteError(msg)
    predicted = np.argmax(to_numpy(logits), axis=1)
    matrix = confusion_matrix(task.test_labels, predicted, task.classes)

    seconds, memory = sum(trainer.history.seconds), peak_memory()
    typer.echo("\ntest set, class by class")
    show(class_table(matrix, task.name, task.samples))
    typer.echo(f"test loss {test_loss:.4f}, test accuracy {percent(matrix.trace(), matrix.sum())}")
    if hint := hint_of(matrix, options, task.samples):
        typer.echo(hint)
    typer.echo(
        f"trained in {seconds:.1f} s, tests after each epoch included, at {rate:,.0f} "
        f"{task.samples}/s" + (f"; peak memory {memory}" if memory else "")
    )
    run = Run(
        command=options.command,
        title=task.title,
        classes=task.classes,
        backend=str(backend),
        seed=options.seed,
        epochs=options.epochs,
        batch_size=options.batch_size,
        images=task.count,
        test_images=tests,
        data=task.data,
        data_dir=task.data_dir,
        started=started,
        seconds=trainer.history.seconds,
        rate=rate,
        memory=memory,
        stopped=trainer.history.stopped,
        environment=surroundings(),
        steps=steps.curves,
        sample_shape=task.sample_shape,
        mirror=options.mirror,
        shift=options.shift,
    )
    if first(group):
        write(trainer, matrix, run, options, task.texts)


def hint_of(matrix: NDArray[np.int64], options: Options, samples: str) -> str:
    """Advice if the model is no better than a constant answer; otherwise empty."""
    commonest = matrix.sum(axis=1).max()
    if matrix.trace() > commonest:
        return ""
    share = percent(commonest, matrix.sum())
    return (
        f"the model has learned nothing that helps: one who always says the same class is right for"
        f" {share}; try a --learning-rate below {options.learning_rate:g}, or more "
        f"{samples} or epochs"
    )
