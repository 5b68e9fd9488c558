"""Labelled texts from tables and folders, and their words as tokens."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xbp.datasets import encode_words, load_labelled_texts, split_words, word_vocabulary
from xbp.errors import DataError, InputError

ROWS = [("So, it begins", "good"), ('He said "no"\nand left', "bad"), ("ça va", "good")]
TABLES = {
    "a.csv": '\ufefflabel,id,Text\r\ngood,1,"So, it begins"\r\n'
    'bad,2,"He said ""no""\nand left"\r\ngood,3,ça va\r\n',
    "a.TSV": 'text\tlabel\nSo, it begins\tgood\n"He said ""no""\nand left"\tbad\n\nça va\tgood\n',
}


@pytest.mark.parametrize("name", TABLES)
def test_a_table(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(TABLES[name].encode())
    found = load_labelled_texts(path)
    assert list(zip(found.texts, [found.classes[i] for i in found.labels], strict=True)) == ROWS
    assert found.classes == ("bad", "good") and found.labels.dtype == np.int64


def test_a_folder_has_a_folder_for_each_class(tmp_path: Path) -> None:
    for name, text in {"b/2.txt": "two", "a/1.txt": "one", "b/1.txt": "", "b/x.md": "no"}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    (tmp_path / "readme.txt").write_text("beside the classes")
    found = load_labelled_texts(tmp_path)
    assert found.texts == ["one", "", "two"] and found.labels.tolist() == [0, 1, 1]
    assert load_labelled_texts(tmp_path, classes=["c", "b", "a"]).labels.tolist() == [2, 1, 1]
    with pytest.raises(DataError, match=r"has the label 'b', where one of 1 classes.*: a"):
        load_labelled_texts(tmp_path, classes=["a"])


BAD_TABLES = {
    "columns.csv": ("a,b\n1,2\n", r"columns \['a', 'b'\], where text and label"),
    "short.csv": ("text,label\nx\n", "line 2 has 1 columns, the first row 2"),
    "quote.csv": ('text,label\n"x,good\n', "is no table of labelled texts"),
    "empty.csv": ("", r"columns \[\], where text and label"),
    "none.tsv": ("text\tlabel\n", "holds no labelled text; give"),
    "a.txt": ("text,label\nx,y\n", "is neither a .csv nor a .tsv file"),
}


@pytest.mark.parametrize("name", BAD_TABLES)
def test_what_is_no_table_is_one_sentence(tmp_path: Path, name: str) -> None:
    content, message = BAD_TABLES[name]
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        load_labelled_texts(tmp_path / name)


def test_what_cannot_be_read_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist; give such a file, or a folder"):
        load_labelled_texts(tmp_path / "nothing")
    with pytest.raises(DataError, match="does not exist; give the path of a text file"):
        load_labelled_texts(tmp_path / "nothing.csv")
    with pytest.raises(DataError, match="holds no labelled text"):
        load_labelled_texts(tmp_path)
    (tmp_path / "latin.csv").write_bytes(b"text,label\ncaf\xe9,a\n")
    with pytest.raises(DataError, match=r"is not in UTF-8 \(byte 14"):
        load_labelled_texts(tmp_path / "latin.csv")


def test_the_commonest_words_come_first_then_by_the_alphabet() -> None:
    texts = ["B b c, a", "a B!"]
    whole = ["<padding>", "<unknown>", "b", "a", "!", ",", "c"]
    assert word_vocabulary(texts) == whole
    assert (
        word_vocabulary(texts, most=4) == whole[:4] and word_vocabulary(texts, least=3) == whole[:3]
    )
    assert word_vocabulary([]) == whole[:2]
    assert split_words("<padding> Ünï_1") == ["<", "padding", ">", "ünï_1"]


def test_tokens_are_cut_and_filled_up() -> None:
    vocabulary = word_vocabulary(["b a b"])
    found = encode_words(["a b x", "", "b B b b b"], vocabulary, 4)
    assert found.tolist() == [[3, 2, 1, 0], [0] * 4, [2] * 4] and found.dtype == np.int64
    assert encode_words([], vocabulary, 3).shape == (0, 3)


BAD: list[tuple[Any, str]] = [
    (lambda: encode_words(["a"], ["a"], 3), "begins with '<padding>' and '<unknown>'"),
    (lambda: encode_words(["a"], word_vocabulary([]), 0), "length must be"),
    (lambda: word_vocabulary(["a"], most=1), "most must be"),
    (lambda: word_vocabulary([b"a"]), "a text must be a string, got"),  # type: ignore[list-item]
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_arguments_are_one_sentence(call: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()
