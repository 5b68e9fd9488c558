"""Tables of measured choices: near sizes, settings, and what is refused."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from xbp.accelerators.cuda import tuned
from xbp.accelerators.cuda.tuned import Decision
from xbp.errors import DataError

TABLE = {
    "format": 1,
    "architecture": "90",
    "measured": "somewhere",
    "choices": {
        "softmax": {
            "float32": [[[100, 1000], [64]], [[100, 1100], [256], [3.0, 4.5]], [[7, 7], []]]
        }
    },
}


class Gpu:
    def __init__(self, capability: str = "90") -> None:
        self.capability = capability

    def architecture(self) -> str:
        return self.capability


@pytest.fixture(autouse=True)
def _anew(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("XBP_TUNED", "XBP_REPRODUCIBLE"):
        monkeypatch.delenv(name, raising=False)
    tuned.forget()
    yield
    tuned.forget()


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "table.json"
    path.write_text(json.dumps(TABLE), encoding="utf-8")
    monkeypatch.setenv("XBP_TUNED", str(path))
    return path


def chosen(*sizes: int, key: str = "float32", gpu: str = "90", family: str = "softmax") -> Any:
    decision = Decision(family, key, sizes)
    return tuned.choose(Gpu(gpu), decision, lambda it: it != (64,) or sizes[0] < 120, lambda: (1,))


def test_the_nearest_sizes_choose(file: Path) -> None:
    assert chosen(100, 1000) == (64,) and chosen(110, 1040) == (64,)
    assert chosen(100, 1060) == (256,) and chosen(90, 1300) == (256,)


def test_the_rule_chooses_elsewhere(file: Path) -> None:
    assert chosen(100, 700) == (1,) and chosen(126, 1000) == (1,), "too far"
    assert chosen(100) == chosen(100, 1000, 1) == chosen(0, 1000) == (1,)
    assert chosen(121, 1000) == (1,), "near, but not allowed"
    assert chosen(7, 7) == (1,), "measured: the rule is best"
    for other in ({"key": "float64"}, {"family": "other"}, {"gpu": ""}):
        assert chosen(100, 1000, **other) == (1,)


@pytest.mark.parametrize("name", ["XBP_TUNED", "XBP_REPRODUCIBLE"])
def test_switched_off(name: str, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, {"XBP_TUNED": "0", "XBP_REPRODUCIBLE": "1"}[name])
    assert chosen(100, 1000) == (1,)
    assert tuned.status("90") == f"kernels are divided by rules ({name}={int(name[-1] == 'E')})"


def test_status(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = "kernels are divided by 2 measured choices, else by rules; somewhere"
    assert tuned.status("90") == said
    monkeypatch.setenv("XBP_TUNED", "1")
    tuned.forget()
    assert "without a table of compute capability 61" in tuned.status("61")


def broken() -> Iterator[tuple[str, bytes]]:
    def changed(**fields: Any) -> bytes:
        return json.dumps({**TABLE, **fields}).encode()

    yield "is no table of measured choices (JSONDecodeError", b"{"
    yield "UnicodeDecodeError", b"\xff\xfe\xfd"
    yield "RecursionError", b"[" * 10**5
    yield "more than 1048576 bytes", b" " * 2**20 + b"{}"
    yield "format 2, where 1 is known", changed(format=2)
    yield "was measured with compute capability 80, this is 90", changed(architecture="80")
    yield "no words about the device", changed(measured=1)
    yield "TypeError", b"[]"
    yield "KeyError", b'{"format": 1}'
    yield "AttributeError", changed(choices=[1])
    rows = [[1]], [[0], [1]], [[1], [-1]], [[1.5], [1]], [[True], [1]], [1, [1]], [[2**63], []]
    for row in rows:
        yield "table.json' is no table of measured choices", changed(choices={"a": {"b": [row]}})


@pytest.mark.parametrize(("said", "content"), [*broken()], ids=lambda it: str(it)[:24])
def test_a_broken_table_is_one_warning(said: str, content: bytes, file: Path) -> None:
    file.write_bytes(content)
    with pytest.warns(UserWarning, match="choices that were measured are not used") as caught:
        assert chosen(100, 1000) == (1,)
    assert len(caught) == 1 and said in str(caught[0].message)
    assert chosen(100, 1001) == (1,) and said in tuned.status("90")


def test_no_such_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.unlink()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert chosen(100, 1000) == (1,)
    assert len(caught) == 1


def test_the_tables_of_the_package() -> None:
    files = list(Path(tuned.__file__).parent.glob("*.json"))
    assert files
    for path in files:
        table = tuned.read(path, path.stem.removeprefix("sm_"))
        assert table.rows
        with pytest.raises(DataError, match="was measured with"):
            tuned.read(path, "1")
