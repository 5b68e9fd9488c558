"""Labelled texts, and their words as tokens."""

from __future__ import annotations

import csv
import io
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from xbp.arguments import described, integer
from xbp.errors import DataError, InputError
from xbp.paths import kind_of, open_file, path_of

PADDING, UNKNOWN = "<padding>", "<unknown>"
"""The first two words of a vocabulary; in a text, "<" is a word of its own."""

DELIMITERS = {".csv": ",", ".tsv": "\t"}
COLUMNS = ("text", "label")


class LabelledTexts(NamedTuple):
    """Texts with labels, from `load_labelled_texts`.

    Attributes
    ----------
    texts : list of str
    labels : numpy array (N,) of int64
        The index of each text's class.
    classes : tuple of str
        Their names, in order.
    """

    texts: list[str]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]


def load_labelled_texts(
    path: str | os.PathLike[str], *, classes: Sequence[str] | None = None
) -> LabelledTexts:
    """Texts and their labels, from a table or a folder.

    Parameters
    ----------
    path : path-like
        A ``.csv`` file (commas) or ``.tsv`` file (tabs), quoted as RFC 4180 says, whose first row
        names the columns, among them "text" and "label"; or a folder with a folder for each class,
        named after it, of ``.txt`` files. All in UTF-8.
    classes : sequence of str, optional
        The classes that may occur; by default those that do, sorted.

    Returns
    -------
    LabelledTexts
        In the order of the rows, or of the names of folders and files.

    Raises
    ------
    DataError
        The file or folder is missing, malformed, not in UTF-8, or has no text; or a label is not
        one of `classes`.
    """
    place = path_of(path, "a set of labelled texts")
    rows = list(_of_folder(place) if kind_of(place) == "a folder" else _of_table(place))
    if not rows:
        msg = (
            f"{str(path)!r} holds no labelled text; give a .csv or .tsv file with the columns text "
            "and label, or a folder with a folder of .txt files for each class"
        )
        raise DataError(msg)
    names = tuple(sorted({label for _, label in rows}) if classes is None else classes)
    index = {name: label for label, name in enumerate(names)}
    for _, label in rows:
        if label not in index:
            msg = (
                f"{str(path)!r} has the label {label!r}, where one of {len(names)} classes was "
                f"expected: {', '.join(names[:10])}{', …' if len(names) > 10 else ''}"
            )
            raise DataError(msg)
    labels = np.asarray([index[label] for _, label in rows], np.int64)
    return LabelledTexts([text for text, _ in rows], labels, names)


def _of_folder(folder: Path) -> Iterator[tuple[str, str]]:
    try:
        classes = [each for each in sorted(folder.iterdir()) if each.is_dir()]
        files = [(file, each.name) for each in classes for file in sorted(each.glob("*.txt"))]
    except OSError as error:
        msg = f"{str(folder)!r} cannot be read ({error.strerror}); check its permissions"
        raise DataError(msg) from None
    for file, label in files:
        yield read_text(file), label


def _of_table(path: Path) -> Iterator[tuple[str, str]]:
    if path.suffix.lower() not in DELIMITERS:
        found = "is neither a .csv nor a .tsv file" if kind_of(path) else "does not exist"
        msg = f"{str(path)!r} {found}; give such a file, or a folder with a folder for each class"
        raise DataError(msg)
    lines = io.StringIO(read_text(path).removeprefix("\ufeff"), newline="")
    rows = csv.reader(lines, delimiter=DELIMITERS[path.suffix.lower()], strict=True)
    try:
        header = [name.strip().lower() for name in next(rows, [])]
        if not {*COLUMNS} <= {*header}:
            msg = f"the first row names the columns {header}, where text and label were expected"
            raise ValueError(msg)
        text, label = (header.index(name) for name in COLUMNS)
        for row in rows:
            if len(row) == len(header):
                yield row[text], row[label]
            elif row:
                msg = f"line {rows.line_num} has {len(row)} columns, the first row {len(header)}"
                raise ValueError(msg)
    except (ValueError, csv.Error) as error:
        msg = f"{str(path)!r} is no table of labelled texts ({error}); correct the file"
        raise DataError(msg) from None


def read_text(path: Path) -> str:
    """A whole file in UTF-8.

    Raises
    ------
    DataError
        It is missing, no plain file, unreadable, or not in UTF-8.
    """
    try:
        with open_file(path, "a text file") as file:
            return file.read().decode("utf-8")
    except UnicodeDecodeError as error:
        msg = f"{str(path)!r} is not in UTF-8 (byte {error.start}: {error.reason}); convert it"
        raise DataError(msg) from None
    except OSError as error:
        msg = f"{str(path)!r} cannot be read ({error.strerror or error}); check its permissions"
        raise DataError(msg) from None


# --- words ---------------------------------------------------------------------------------------


def split_words(text: str) -> list[str]:
    """The words of a text in lower case; each mark of punctuation is one.

    >>> split_words("Don't!")
    ['don', "'", 't', '!']
    """
    if not isinstance(text, str):
        msg = f"a text must be a string, got {described(text)}"
        raise InputError(msg)
    return re.findall(r"\w+|[^\w\s]", text.lower())


def word_vocabulary(texts: Iterable[str], *, most: int = 20_000, least: int = 1) -> list[str]:
    """The words of texts, the most frequent ones first, after `PADDING` and `UNKNOWN`.

    Parameters
    ----------
    texts : iterable of str
    most : int, default 20000
        The size of the vocabulary at most, those two included.
    least : int, default 1
        The least number of occurrences of a word in it.

    Raises
    ------
    InputError
        An argument is out of range.

    Examples
    --------
    >>> word_vocabulary(["No, no!", "Oh no."], least=1)
    ['<padding>', '<unknown>', 'no', '!', ',', '.', 'oh']
    """
    most, least = integer("most", most, least=2), integer("least", least, least=1)
    counts = Counter(word for text in texts for word in split_words(text))
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return [PADDING, UNKNOWN, *[word for word, n in ranked[: most - 2] if n >= least]]


def encode_words(texts: Iterable[str], vocabulary: Sequence[str], length: int) -> NDArray[np.int64]:
    """Texts as tokens (N, length): the first words of each, then 0 as padding.

    Parameters
    ----------
    texts : iterable of str
    vocabulary : sequence of str
        As from `word_vocabulary`; a word that it lacks has the token 1.
    length : int

    Raises
    ------
    InputError
        It is no such vocabulary, or `length` is below 1.

    Examples
    --------
    >>> encode_words(["Oh no no"], ["<padding>", "<unknown>", "no"], 4).tolist()
    [[1, 2, 2, 0]]
    """
    length = integer("length", length, least=1)
    if list(vocabulary[:2]) != [PADDING, UNKNOWN]:
        msg = f"a vocabulary begins with {PADDING!r} and {UNKNOWN!r}, as word_vocabulary makes it"
        raise InputError(msg)
    index = {word: token for token, word in enumerate(vocabulary)}
    rows = [[index.get(word, 1) for word in split_words(text)[:length]] for text in texts]
    result = np.zeros((len(rows), length), np.int64)
    for row, tokens in zip(result, rows, strict=True):
        row[: len(tokens)] = tokens
    return result
