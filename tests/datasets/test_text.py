"""A text as tokens, and back."""

from pathlib import Path

import numpy as np
import pytest

from xbp.datasets import load_text
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
