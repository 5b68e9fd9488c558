"""Conversion of a text to tokens and back."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xbp.datasets import decode_text, encode_text, load_text, text_windows
from xbp.errors import DataError, InputError


@pytest.mark.parametrize("text", ["a", "banana\r\n", "Straße 東京 𝕏\0"])
def test_tokens_are_the_text_again(tmp_path: Path, text: str) -> None:
    path = tmp_path / "text"
    path.write_bytes(text.encode())
    tokens, vocabulary = load_text(path)
    assert "".join(vocabulary[token] for token in tokens) == text
    assert vocabulary == sorted(set(text)) and tokens.dtype == np.uint8
    tokens, vocabulary = load_text(path, unit="bytes")
    assert b"".join(vocabulary[token] for token in tokens) == text.encode()
    assert len(vocabulary) == 256 and tokens.flags.writeable and tokens.dtype == np.uint8


def test_many_characters_need_two_bytes(tmp_path: Path) -> None:
    path = tmp_path / "text"
    for count, dtype in ((256, np.uint8), (257, np.uint16)):
        path.write_text("".join(map(chr, range(300, 300 + count))), encoding="utf-8")
        tokens, vocabulary = load_text(path)
        assert tokens.dtype == dtype and tokens.tolist() == list(range(count))
        assert vocabulary[-1] == chr(299 + count)


def test_what_is_no_text_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "text"
    with pytest.raises(DataError, match="does not exist; give the path of a text file"):
        load_text(path)
    path.write_bytes(b"")
    with pytest.raises(DataError, match="is empty, where a text was expected"):
        load_text(path)
    path.write_bytes(b"caf\xe9")
    with pytest.raises(DataError, match=r"is not a text in UTF-8 \(byte 3: .*unit='bytes'"):
        load_text(path)
    assert load_text(path, unit="bytes")[0].tolist() == [99, 97, 102, 0xE9]
    with pytest.raises(InputError, match="unit must be one of 'characters', 'bytes', got 'words'"):
        load_text(path, unit="words")
    with pytest.raises(DataError, match="is a folder"):
        load_text(tmp_path)


@pytest.mark.parametrize("unit", ["characters", "bytes"])
def test_what_is_encoded_is_decoded_again(tmp_path: Path, unit: str) -> None:
    path = tmp_path / "text"
    path.write_text("Straße 東京 𝕏", encoding="utf-8")
    tokens, vocabulary = load_text(path, unit=unit)
    assert decode_text(tokens, vocabulary) == "Straße 東京 𝕏"
    found = encode_text("東𝕏ß", vocabulary)
    assert found.dtype == np.int64 and decode_text(found, vocabulary) == "東𝕏ß"
    assert encode_text("", vocabulary).shape == (0,) and decode_text([], vocabulary) == ""


def test_half_a_character_is_shown_as_such() -> None:
    vocabulary = [bytes([i]) for i in range(256)]
    assert decode_text([0xE6, 0x9D, 97], vocabulary) == "\N{REPLACEMENT CHARACTER}a"


def test_windows_have_the_token_after_each() -> None:
    tokens = np.arange(300, dtype=np.uint16)
    x, y = text_windows(tokens, range(0, 297, 99), 2)
    assert x.tolist() == [[0, 1], [99, 100], [198, 199]] and np.array_equal(y, x + 1)
    assert x.dtype == y.dtype == np.int64
    assert text_windows(tokens, [297], 2)[1].tolist() == [[298, 299]]
    assert text_windows(tokens, np.zeros(0, int), 2)[0].shape == (0, 2)


BAD: list[tuple[Any, str]] = [
    (lambda: encode_text("abx", ["a", "b"]), "'x' is not among the 2 of the vocabulary"),
    (lambda: encode_text(3, ["a"]), "takes a string, got an int"),  # type: ignore[arg-type]
    (lambda: decode_text([2], ["a", "b"]), r"tokens \(N,\) from 0 to 1"),
    (lambda: decode_text([-1], ["a", "b"]), "from 0 to 1"),
    (lambda: decode_text([0.5], ["a", "b"]), "from 0 to 1"),
    (lambda: decode_text([[0]], ["a", "b"]), "from 0 to 1"),
    (lambda: text_windows(np.arange(5), [3], 2), "start from 0 to 2 in a text of 5"),
    (lambda: text_windows(np.arange(5), [-1], 2), "start from 0 to 2"),
    (lambda: text_windows(np.arange(5), [0.0], 2), "start from 0 to 2"),
    (lambda: text_windows(np.arange(5), 0, 2), "start from 0 to 2"),
]


@pytest.mark.parametrize(("call", "sentence"), BAD, ids=[sentence for _, sentence in BAD])
def test_wrong_tokens_are_one_sentence(call: Any, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        call()
