"""Train a network that classifies images, and test it."""

from __future__ import annotations

import math
from datetime import UTC, datetime

import numpy as np
import typer
from numpy.typing import NDArray

import xbp
from xbp import optim
from xbp.backend import find_backend, to_numpy
from xbp.cli.display import class_table, model_table, peak_memory, show
from xbp.cli.files import prepare_folder
from xbp.cli.fitting import RESULTS, fit, told_if_diverged, write
from xbp.cli.networks import PREPARED, Network
from xbp.cli.options import Options
from xbp.errors import NonFiniteError
from xbp.nn.summary import summary
from xbp.report.run import Run, StepCurve, surroundings
from xbp.training import Trainer
from xbp.training.callbacks.progress import percent
from xbp.training.metrics.confusion import confusion_matrix


def train_classifier(network: Network, options: Options) -> None:
    """A whole training, from its options to its files.

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
    options.check()
    backend = find_backend(options.backend, device=options.device)
    xbp.set_backend(backend.name, device=options.device)
    model = network.make_model(options.classes, dtype=options.dtype, rng=options.seed)
    splits = network.load(options)
    (_, labels), (_, test_labels) = splits
    train, test = (network.given(split, options.dtype) for split in splits)
    if network.prepare is not None:
        images = network.images.standardized(splits[0][0][:PREPARED], options.dtype)
        network.prepare(model, images)
    prepare_folder(options.output, RESULTS)
    started = datetime.now(UTC).isoformat(timespec="seconds")

    typer.echo(f"{network.title} on {backend}")
    show(model_table(summary(model, network.image_shape)))
    count, test_images = len(labels), len(test_labels)
    typer.echo(f"{count:,} training images, {test_images:,} test images, seed {options.seed}")
    schedule = optim.OneCycleLR(
        options.learning_rate, options.epochs * -(-count // options.batch_size)
    )
    optimizer = network.make_optimizer(model, schedule)
    trainer = Trainer(model, network.loss, optimizer, ("accuracy",), rng=options.seed)

    steps = StepCurve()
    # The trainer checks for infinite and nan values, and names the layer.
    with np.errstate(all="ignore"), told_if_diverged(trainer, options):
        rate = fit(trainer, train, test, options, steps, augment=network.augment)
        logits = trainer.predict(test[0] if isinstance(test, tuple) else test)
        test_loss = float(to_numpy(network.loss(logits, xbp.asarray(test_labels))[0]))
        if not math.isfinite(test_loss):  # all losses of training were finite
            advice = f"a --learning-rate below {options.learning_rate:g} may help"
            msg = f"the test loss is {test_loss}; {advice}"
            raise NonFiniteError(msg)
    predicted = np.argmax(to_numpy(logits), axis=1)
    matrix = confusion_matrix(test_labels, predicted, options.classes)

    seconds, memory = sum(trainer.history.seconds), peak_memory()
    typer.echo("\ntest set, class by class")
    show(class_table(matrix, network.images.name))
    typer.echo(f"test loss {test_loss:.4f}, test accuracy {percent(matrix.trace(), matrix.sum())}")
    if hint := hint_of(matrix, options):
        typer.echo(hint)
    typer.echo(
        f"trained in {seconds:.1f} s, tests after each epoch included, at {rate:,.0f} images/s"
        + (f"; peak memory {memory}" if memory else "")
    )
    run = Run(
        command=options.command,
        title=network.title,
        classes=options.classes,
        backend=str(backend),
        seed=options.seed,
        epochs=options.epochs,
        batch_size=options.batch_size,
        images=count,
        test_images=test_images,
        data=network.set_name,
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


def hint_of(matrix: NDArray[np.int64], options: Options) -> str:
    """Advice if the model is no better than a constant answer; otherwise empty."""
    commonest = matrix.sum(axis=1).max()
    if matrix.trace() > commonest:
        return ""
    share = percent(commonest, matrix.sum())
    return (
        f"the model has learned nothing that helps: one who always says the same class is right for"
        f" {share}; try a --learning-rate below {options.learning_rate:g}, or more images or epochs"
    )
