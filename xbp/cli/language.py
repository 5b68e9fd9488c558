"""Train a language model, and let it write."""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import typer

from xbp import optim
from xbp.arguments import integer
from xbp.backend import Array, to_numpy
from xbp.cli.display import model_table, peak_memory, show
from xbp.cli.files import prepare_folder
from xbp.cli.fitting import RESULTS, fit, told_if_diverged, write
from xbp.cli.options import Options
from xbp.cli.ranks import first, ready
from xbp.data import Subset, Windows
from xbp.datasets import decode_text, load_text
from xbp.errors import DataError
from xbp.models.gpt import GPT, NextTokenLoss
from xbp.random import generator
from xbp.report.language import rows_of
from xbp.report.run import SAMPLE, VOCABULARY, Run, StepCurve, surroundings
from xbp.training import Callback, Trainer

if TYPE_CHECKING:
    from xbp.training import Training

WRITTEN = 500
"""Tokens of the sample that a training ends with."""


@dataclass(frozen=True)
class Sizes:
    """The sizes of a GPT, except its vocabulary."""

    layers: int
    heads: int
    width: int
    context: int
    dropout: float


def train_language(text: Path, unit: str, steps: int, sizes: Sizes, options: Options) -> None:
    """A whole training, from its options to its files.

    Parameters
    ----------
    text : Path
    unit : {"characters", "bytes"}
    steps : int
    sizes : Sizes
    options : Options
        The user's options.

    Raises
    ------
    XBPError
        An option or the text is wrong, before training; or the loss became infinite or nan.
    """
    integer("--steps", steps, least=1)
    backend, group = ready(options)
    tokens, vocabulary = load_text(text, unit=unit)
    model = GPT(len(vocabulary), **asdict(sizes), dtype=options.dtype, rng=options.seed)
    train, test = windows(tokens[: options.limit], sizes.context, repr(str(text)))
    prepare_folder(options.output, RESULTS)
    started = datetime.now(UTC).isoformat(timespec="seconds")

    typer.echo(f"GPT on {backend}")
    show(model_table(rows_of(model)))
    typer.echo(
        f"{len(train.tokens):,} {unit} for training, {len(test) * sizes.context:,} for the test, "
        f"{len(vocabulary)} different ones, seed {options.seed}"
    )
    groups = optim.decay_groups(model, weight_decay=0.1)
    schedule = optim.OneCycleLR(options.learning_rate, steps, pct_start=0.05)
    optimizer = optim.AdamW(groups, schedule, betas=(0.9, 0.99))
    seed, precision = options.seed, options.precision
    trainer = Trainer(model, NextTokenLoss(), optimizer, rng=seed, group=group, precision=precision)

    # One epoch, whose windows are drawn beforehand: so a run resumes within it.
    starts = generator(options.seed).integers(len(train), size=steps * options.batch_size)
    curve, lines = StepCurve(), StepLines(steps)
    with np.errstate(all="ignore"), told_if_diverged(trainer, options, group):
        rate = fit(trainer, Subset(train, starts), test, options, curve, lines=lines)
    loss = trainer.history.records[-1].get("val_loss")
    if loss is None:  # of a run that was ended early
        loss = trainer.evaluate(test)["loss"]
    seconds, memory = sum(trainer.history.seconds), peak_memory()
    typer.echo(f"\ntest loss {loss:.4f}, so {loss / math.log(2):.3f} bits for each of the {unit}")
    typer.echo(
        f"trained in {seconds:.1f} s, the test included, at {rate * sizes.context:,.0f} tokens/s"
        + (f"; peak memory {memory}" if memory else "")
    )
    written = decode_text(model.generate(tokens[:1], WRITTEN, rng=options.seed), vocabulary)
    typer.echo(f"\n{written}\n")
    run = Run(
        command=options.command,
        title="GPT",
        classes=len(vocabulary),
        backend=str(backend),
        seed=options.seed,
        epochs=1,
        batch_size=options.batch_size,
        images=steps * options.batch_size,
        test_images=len(test),
        data="text",
        data_dir=str(text.absolute()),
        started=started,
        seconds=trainer.history.seconds,
        rate=rate,
        memory=memory,
        stopped=trainer.history.stopped,
        environment=surroundings(),
        steps=curve.curves,
    )
    units = list(vocabulary) if unit == "characters" else []
    stored = json.dumps({"unit": unit, "vocabulary": units}, indent=1) + "\n"
    if first(group):
        write(trainer, None, run, options, {VOCABULARY: stored, SAMPLE: written})


def windows(tokens: np.ndarray, context: int, name: str) -> tuple[Windows, Subset]:
    """All windows of the first nine tenths; and of the last tenth those that do not overlap.

    Raises
    ------
    DataError
        The text is too short.
    """
    end = len(tokens) * 9 // 10
    if min(end, len(tokens) - end) <= context:
        msg = (
            f"{name} has {len(tokens)} tokens, and their last tenth, for the test, holds no window "
            f"of {context} and the token after it; take a longer text, or a smaller --context"
        )
        raise DataError(msg)
    test = Windows(tokens[end:], context)
    return Windows(tokens[:end], context), Subset(test, np.arange(0, len(test), context))


class StepLines(Callback):
    """Ten plain lines, each with the mean loss of the steps since the last one.

    Parameters
    ----------
    steps : int
        How many there are.
    """

    def __init__(self, steps: int) -> None:
        self.every = max(1, steps // 10)

    def on_epoch_begin(self, trainer: Training, epoch: int) -> None:
        self.begun = time.perf_counter()
        self.losses: list[Array] = []

    def on_step_end(self, trainer: Training, step: int) -> None:
        self.losses.append(trainer.current_loss)
        if step % self.every == 0:
            mean = sum(float(to_numpy(loss)) for loss in self.losses) / len(self.losses)
            seconds = time.perf_counter() - self.begun
            typer.echo(
                f"step {step:,}/{trainer.steps_per_epoch:,}: loss {mean:.4f}, {seconds:.1f} s"
            )
            self.losses = []
