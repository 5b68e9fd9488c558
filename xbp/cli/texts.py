"""Training of a network that classifies texts."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import typer

from xbp import nn, optim
from xbp.arguments import integer
from xbp.cli.classify import Task, perform
from xbp.cli.options import Options
from xbp.cli.ranks import ready
from xbp.datasets import load_labelled_texts, split_words, word_vocabulary
from xbp.datasets.labelled_texts import LabelledTexts
from xbp.models import TextClassifier
from xbp.report.run import TEXTS, VOCABULARY
from xbp.report.texts import Lexicon, rows_of, split_texts


@dataclass(frozen=True)
class Sizes:
    """The sizes of a `TextClassifier`, except its words and classes."""

    width: int
    hidden: int
    layers: int
    bidirectional: bool
    dropout: float


def train_texts(
    place: Path, test_place: Path | None, length: int, words: int, sizes: Sizes, options: Options
) -> None:
    """A whole training, from its options to its files.

    Parameters
    ----------
    place : Path
        The labelled texts.
    test_place : Path or None
        The texts for the test; by default a tenth of the others, drawn with the seed.
    length : int
        The number of words that are read of a text.
    words : int
        The largest size of the vocabulary.
    sizes : Sizes
    options : Options
        The user's options.

    Raises
    ------
    XBPError
        An option or the texts are wrong, before training; or the loss became infinite or nan.
    """
    integer("--length", length, least=1)
    integer("--words", words, least=3)
    backend, group = ready(options)
    texts = load_labelled_texts(place)
    if test_place is None:
        train, test = split_texts(texts, options.seed)
    else:
        train, test = texts, load_labelled_texts(test_place, classes=texts.classes)
    train = LabelledTexts(
        train.texts[: options.limit], train.labels[: options.limit], train.classes
    )
    vocabulary = word_vocabulary(train.texts, most=words)
    longest = max(len(split_words(text)) for text in train.texts)
    lexicon = Lexicon(
        vocabulary,
        list(texts.classes),
        max(1, min(length, longest)),
        None if test_place is None else str(Path(test_place).absolute()),
    )
    model = TextClassifier(
        len(vocabulary),
        len(texts.classes),
        **asdict(sizes),
        dtype=options.dtype,
        rng=options.seed,
    )
    typer.echo(f"{len(vocabulary):,} words, {len(texts.classes)} classes")
    task = Task(
        title="Text classifier",
        model=model,
        layers=rows_of(model, lexicon.length),
        make_optimizer=adam,
        loss=nn.CrossEntropyLoss(),
        train=(lexicon.encode(train.texts), train.labels),
        test=(lexicon.encode(test.texts), test.labels),
        count=len(train.texts),
        test_labels=test.labels,
        classes=len(texts.classes),
        samples="texts",
        name=lexicon.name,
        data=TEXTS,
        data_dir=str(Path(place).absolute()),
        sample_shape=[lexicon.length],
        texts={VOCABULARY: lexicon.dumps()},
    )
    perform(task, options, backend, group)


def adam(model: nn.Layer, schedule: optim.OneCycleLR) -> optim.Optimizer:
    """AdamW with some decay of matrices, as there are many words and few texts."""
    return optim.AdamW(optim.decay_groups(model, weight_decay=0.01), schedule)
