"""The parts of a text classifier's run: its words and classes, and its test set."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xbp.backend import backend_of, to_numpy
from xbp.datasets.labelled_texts import (
    PADDING,
    UNKNOWN,
    LabelledTexts,
    encode_words,
    load_labelled_texts,
)
from xbp.errors import DataError
from xbp.models import TextClassifier
from xbp.nn.summary import LayerSummary
from xbp.random import generator
from xbp.report.run import VOCABULARY, Run, read_file

SHARE = 10
"""Without a separate test set, one text in this many belongs to it."""


@dataclass(frozen=True)
class Lexicon:
    """The meaning of tokens and labels of a text classifier.

    Attributes
    ----------
    vocabulary : list of str
        As from `word_vocabulary`.
    classes : list of str
    length : int
        The number of words that are read of a text.
    test : str or None
        The test set, if it is a separate one.
    """

    vocabulary: list[str]
    classes: list[str]
    length: int
    test: str | None = None

    def dumps(self) -> str:
        """The content of the file `VOCABULARY`."""
        return json.dumps({"unit": "words", **asdict(self)}, indent=1) + "\n"

    @classmethod
    def load(cls, folder: Path, model: TextClassifier) -> Lexicon:
        """The lexicon of the run in `folder`.

        Raises
        ------
        DataError
            The file is missing or malformed, or of another model.
        """
        try:
            content = json.loads(read_file(folder, VOCABULARY))
            unit = content.pop("unit")
            found = cls(**content)
            words, classes = found.vocabulary, found.classes
            lists = all(isinstance(each, list) for each in (words, classes))
            if lists and all(isinstance(each, str) for each in (*words, *classes)):
                sizes = {"vocabulary": len({*words}), "num_classes": len({*classes})}
                if (
                    unit == "words"
                    and words[:2] == [PADDING, UNKNOWN]
                    and sizes.items() <= model.arguments.items()
                    and (len(words), len(classes)) == tuple(sizes.values())
                    and type(found.length) is int
                    and 0 < found.length < LONGEST
                    and (found.test is None or isinstance(found.test, str))
                ):
                    return found
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
            pass
        msg = (
            f"{str(folder / VOCABULARY)!r} is not of the model beside it, with "
            f"{model.arguments['vocabulary']} words and {model.arguments['num_classes']} classes; "
            "train again"
        )
        raise DataError(msg)

    def encode(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """Texts as tokens (N, length)."""
        return encode_words(texts, self.vocabulary, self.length)

    def name(self, label: int) -> str:
        """The name of a class."""
        return self.classes[label]


LONGEST = 2**20
"""The largest number of words in a text."""


def logits_of(
    model: TextClassifier, lexicon: Lexicon, texts: Sequence[str]
) -> NDArray[np.floating[Any]]:
    """The model's outputs (N, classes), on the host."""
    backend = backend_of(model.tokens.weight.data)
    parts = [texts[i : i + 256] for i in range(0, len(texts), 256)]
    found = [to_numpy(model(backend.asarray(lexicon.encode(part)))) for part in parts]
    return np.concatenate(found)


def split_texts(texts: LabelledTexts, seed: int) -> tuple[LabelledTexts, LabelledTexts]:
    """All but a tenth of the texts, and that tenth, drawn with the seed.

    Raises
    ------
    DataError
        There are fewer than ten.
    """
    count = len(texts.texts)
    if count < SHARE:
        msg = f"there are {count} texts, of which none is left for the test; give {SHARE} or more"
        raise DataError(msg)
    order = generator(seed).permutation(count)
    test, train = np.sort(order[: count // SHARE]), np.sort(order[count // SHARE :])
    return part_of(texts, train), part_of(texts, test)


def part_of(texts: LabelledTexts, indices: NDArray[np.int64]) -> LabelledTexts:
    """Some of the texts."""
    chosen = [texts.texts[i] for i in indices.tolist()]
    return LabelledTexts(chosen, texts.labels[indices], texts.classes)


def load_test_texts(run: Run, lexicon: Lexicon, data_dir: Path | None) -> LabelledTexts:
    """The texts of a run's test.

    Raises
    ------
    DataError
        They cannot be found, or differ from those of the run.
    """
    place = data_dir or Path(lexicon.test or run.data_dir or "")
    found = load_labelled_texts(place, classes=lexicon.classes)
    if lexicon.test is None:
        _, found = split_texts(found, run.seed)
    if len(found.texts) != run.test_images:
        msg = (
            f"the test set of {str(place)!r} is not the one of this run, with {run.test_images:,} "
            "texts; say with --data-dir where it is"
        )
        raise DataError(msg)
    return found


def rows_of(model: TextClassifier, length: int) -> list[LayerSummary]:
    """The layers of a text classifier, in the order of the forward."""
    width, states = model.tokens.embedding_dim, model.head.in_features
    shapes = {
        "tokens": (length, width),
        "lstm": (length, states),
        "head": (model.head.out_features,),
    }
    return [
        LayerSummary(
            name, type(layer).__name__, shapes[name], sum(p.data.size for p in layer.parameters())
        )
        for name, layer in model.children()
        if name in shapes
    ]
