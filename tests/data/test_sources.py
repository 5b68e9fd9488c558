"""Sources return the samples of the given indices, for every kind of source."""

from __future__ import annotations

import errno
import hashlib
import io
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import xbp
from xbp import data
from xbp.data.sources import as_pair, batches_of, inputs_of, is_stream
from xbp.errors import DataError, InputError
from xbp.testing.helpers import replaced

RNG = np.random.default_rng(0)
X = RNG.normal(size=(11, 3, 2)).astype("float32")
Y = RNG.integers(0, 4, 11)
ORDERS = [[0], [10, 0, 10], [3, 4, 5, 6], list(range(11)), [7, 8, 2, 1, 0], []]


def files(folder: Path, x: Any = X, y: Any = Y) -> tuple[Path, Path]:
    np.save(folder / "x.npy", x)
    np.save(folder / "y.npy", y)
    return folder / "x.npy", folder / "y.npy"


def mapped(folder: Path) -> list[Any]:
    return [np.load(path, mmap_mode="r") for path in files(folder)]


SOURCES = {
    "arrays": lambda path: data.Arrays(X, Y),
    "maps": lambda path: data.Arrays(*mapped(path)),
    "lists": lambda path: data.Arrays(X.tolist(), Y.tolist()),
    "files": lambda path: data.Files(*files(path)),
    "function": lambda path: data.Function(lambda indices: (X[indices], Y[indices]), 11),
    "subset": lambda path: data.Subset(
        data.Arrays(np.repeat(X, 2, axis=0), np.repeat(Y, 2)), np.arange(1, 22, 2)
    ),
}


@pytest.mark.parametrize("order", ORDERS, ids=str)
@pytest.mark.parametrize("name", SOURCES)
def test_a_batch_is_the_samples_in_the_order_asked_for(tmp_path, name, order) -> None:
    source = SOURCES[name](tmp_path)
    indices = np.array(order, np.int64)
    x, y = source.batch(indices)
    np.testing.assert_array_equal(x, np.array([X[i] for i in order]).reshape(-1, 3, 2))
    np.testing.assert_array_equal(y, [Y[i] for i in order])
    assert len(source) == 11 and isinstance(source, data.Source)


@pytest.mark.parametrize("library", ["array_api_strict", "torch"])
def test_arrays_of_other_libraries(library: str) -> None:
    pytest.importorskip(library)
    with xbp.use_backend(library):
        source = data.Arrays(xbp.asarray(X), xbp.asarray(Y))
    x, y = source.batch(np.array([2, 1]))
    np.testing.assert_array_equal(x, X[[2, 1]])
    np.testing.assert_array_equal(y, Y[[2, 1]])


def test_tuples_of_arrays_and_no_targets() -> None:
    (a, b), y = data.Arrays((X, X[:, 0]), Y).batch(np.array([4, 2]))
    np.testing.assert_array_equal(a, X[[4, 2]])
    np.testing.assert_array_equal(b, X[[4, 2], 0])
    assert y.tolist() == Y[[4, 2]].tolist()
    assert data.Arrays(X).batch(np.array([1])).shape == (1, 3, 2)


@pytest.mark.parametrize(("size", "lengths"), [(4, [4, 4, 3]), (5, [5, 5, 1])])
def test_batches_begin_anywhere_in_the_order(size: int, lengths: list[int]) -> None:
    order = np.random.default_rng(1).permutation(11)
    source = data.Arrays(X, Y)
    whole = list(batches_of(source, order, size))
    assert [len(y) for _, y in whole] == lengths
    np.testing.assert_array_equal(np.concatenate([y for _, y in whole]), Y[order])
    for first in range(4):
        rest = list(batches_of(source, order, size, first))
        assert len(rest) == 3 - first
        for (x, _), (again, _) in zip(rest, whole[first:], strict=True):
            np.testing.assert_array_equal(x, again)


@pytest.mark.parametrize("dtype", ["<f4", ">f4", ">i2", "u1", "?", "<f8"])
def test_files_of_any_numbers_in_any_byte_order(tmp_path, dtype: str) -> None:
    values = (RNG.integers(0, 7, (6, 5)) / 3).astype(dtype)  # thirds need all digits
    found, y = data.Files(*files(tmp_path, values, Y[:6])).batch(np.array([5, 0, 1]))
    np.testing.assert_array_equal(found, values[[5, 0, 1]])
    assert found.dtype == np.dtype(dtype).newbyteorder("=") and found.dtype.isnative
    assert y.shape == (3,)


@pytest.mark.parametrize("version", [(1, 0), (2, 0)])
def test_both_versions_of_the_format(tmp_path, version) -> None:
    with (tmp_path / "x.npy").open("wb") as file:
        np.lib.format.write_array(file, X, version=version)
    np.testing.assert_array_equal(data.Files(tmp_path / "x.npy").batch(np.array([3])), X[[3]])


HARMS: dict[str, tuple[Any, str]] = {
    "cut": (lambda b: b[:-1], "it is cut short or corrupt: write it again"),
    "longer": (lambda b: b + b"\0", "where its header promises"),
    "no npy": (lambda b: b"PK\3\4" + b, "is no .npy file that can be read"),
    "empty": (lambda b: b"", "is no .npy file that can be read"),
    "version": (lambda b: b[:6] + b"\x09\0" + b[8:], "is no .npy file that can be read"),
    "header": (lambda b: b.replace(b"(11, 3, 2)", b"(1__, 3, 2)"), "is no .npy file"),
    "more": (lambda b: b.replace(b"(11, 3, 2)", b"(99, 3, 2)"), "where its header promises"),
    "scalar": (lambda b: b.replace(b"(11, 3, 2)", b"()        "), "array of shape ()"),
    "no axis": (lambda b: b.replace(b"(11, 3, 2)", b"(11, 0, 2)"), "array of shape (11, 0, 2)"),
    "columns": (lambda b: b.replace(b"False", b"True "), "in Fortran order"),
    "text": (lambda b: b.replace(b"<f4", b"<U1"), "holds <U1, where real numbers"),
    "objects": (lambda b: b.replace(b"<f4", b"|O "), ""),
}


@pytest.mark.parametrize("harm", HARMS)
def test_what_is_no_such_file_is_one_sentence(tmp_path, harm: str) -> None:
    path, _ = files(tmp_path)
    change, said = HARMS[harm]
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(DataError) as caught:
        data.Files(path)
    assert said in str(caught.value) and str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_are_missing_or_do_not_fit(tmp_path) -> None:
    x, y = files(tmp_path)
    with pytest.raises(DataError, match=r"does not exist; give the path of a \.npy file"):
        data.Files(x, tmp_path / "z.npy")
    np.save(y, Y[:10])
    with pytest.raises(InputError, match=r"holds 11 samples but .* 10; give two files of one set"):
        data.Files(x, y)
    source = data.Files(x)
    with x.open("r+b") as file:
        file.truncate(300)
    with pytest.raises(DataError, match="has become shorter since it was opened"):
        source.batch(np.arange(11))
    x.unlink()
    with pytest.raises(DataError, match="does not exist"):
        source.batch(np.arange(11))


def test_what_the_system_cannot_read_is_one_sentence(tmp_path) -> None:
    class Broken(io.BytesIO):
        def seek(self, *to: int) -> int:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    source = data.Files(*files(tmp_path))
    said = r"x.npy' cannot be read \(Input/output error\); check"
    with replaced(source.parts[0], _open=Broken), pytest.raises(DataError, match=said):
        source.batch(np.arange(2))


def test_windows_are_all_windows_and_what_follows() -> None:
    tokens = np.array([3, 1, 4, 1, 5, 9], np.uint8)
    source = data.Windows(tokens, 2)
    x, y = source.batch(np.arange(len(source)))
    assert len(source) == 4 and x.dtype == y.dtype == np.int64
    assert x.tolist() == [[3, 1], [1, 4], [4, 1], [1, 5]]
    assert y.tolist() == [[1, 4], [4, 1], [1, 5], [5, 9]]
    assert source.batch(np.array([2]))[1].tolist() == [[1, 5]]
    for wrong, context, said in (
        (tokens[:2], 2, "2 tokens hold no window of 2 and the token after it"),
        (tokens.astype("float32"), 2, r"tokens must be integers \(N,\)"),
        (tokens[None], 2, r"tokens must be integers \(N,\)"),
        (tokens, 0, "context must be an integer of at least 1"),
    ):
        with pytest.raises(InputError, match=said):
            data.Windows(wrong, context)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: data.Arrays(X, Y[:5]), "need the same number of samples"),
        (lambda: data.Arrays((X, X[:1]), Y), "need the same number of samples"),
        (lambda: data.Arrays(3.0), "need the same number of samples"),
        (lambda: data.Arrays(X[:0]), "there are no samples in a source"),
        (lambda: data.Arrays(["a"], [1]), "numbers"),
        (lambda: data.Function(3, 4), r"must be a function of \(indices\), got an int"),
        (lambda: data.Function(lambda: 3, 4), r"must be a function of \(indices\)"),
        (lambda: data.Function(len, 0), "length must be an integer of at least 1"),
        (lambda: data.Subset(X, [0]), r"a source was expected, such as data.Arrays\(x, y\)"),
        (lambda: data.Subset(data.Arrays(X), []), r"must be integers \(n,\), at least one"),
        (lambda: data.Subset(data.Arrays(X), [0.5]), r"must be integers \(n,\), at least one"),
        (lambda: data.Subset(data.Arrays(X), [[0]]), r"must be integers \(n,\), at least one"),
        (lambda: data.Subset(data.Arrays(X), [11]), "must be from 0 to 10, got 11 to 11"),
        (lambda: data.Subset(data.Arrays(X), [-1, 3]), "must be from 0 to 10, got -1 to 3"),
        (lambda: as_pair(X), r"a batch must be a pair \(x, y\), got a ndarray"),
        (lambda: as_pair((X,)), r"a batch must be a pair \(x, y\), got a tuple of 1"),
        (lambda: as_pair((X, Y[:3])), "need the same number of samples"),
        (lambda: as_pair((X[:0], Y[:0])), "at least one"),
        (lambda: as_pair((X, 3)), "need the same number of samples"),
    ],
)
def test_wrong_input_is_one_sentence(make, said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_a_source_that_defines_nothing() -> None:
    class Empty(data.Source):
        pass

    with pytest.raises(NotImplementedError, match="Empty has no length; define __len__"):
        len(Empty())
    with pytest.raises(NotImplementedError, match="Empty gives no batches; define batch"):
        Empty().batch(np.arange(1))


def test_what_is_a_stream_and_what_arrays() -> None:
    streams = [data.Arrays(X), [(X, Y)], iter([X]), (x for x in X), map(len, []), {1: 2}.values()]
    arrays = [X, X.tolist(), (X, Y), "text", b"text", {"a": 1}, {1}, None, 3, [], range(3)]
    assert [is_stream(each) for each in streams] == [True] * len(streams)
    assert [is_stream(each) for each in arrays] == [False] * len(arrays)


def test_a_loader_of_pytorch_is_a_stream_and_a_tensor_is_none() -> None:
    torch = pytest.importorskip("torch")
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.zeros(3)))
    assert is_stream(loader) and not is_stream(torch.zeros(3))


def test_inputs_are_x_alone_or_beside_y() -> None:
    for batch in (X, (X, Y), [X, Y]):
        np.testing.assert_array_equal(inputs_of(batch), X)
    np.testing.assert_array_equal(inputs_of([[1, 2], [3, 4]]), [[1, 2], [3, 4]])
    assert len(inputs_of((X, X, X))) == 3  # inputs of three parts
    (alone,), y = as_pair(([X], Y))
    assert alone is X and y is Y


def test_fingerprints_tell_data_apart(tmp_path) -> None:
    other = X.copy()
    other[7, 2, 1] += 1
    assert data.Arrays(X, Y).fingerprint() == data.Arrays(X.copy(), Y.copy()).fingerprint()
    x, y = files(tmp_path)
    before = data.Files(x, y).fingerprint()
    assert data.Files(x, y).fingerprint() == before
    for row in (0, 10):  # the ends are among the rows that are looked at
        at_an_end = X.copy()
        at_an_end[row] += 1
        np.save(x, at_an_end)
        assert data.Files(x, y).fingerprint() != before
    np.save(x, other)
    prints = [
        data.Arrays(X, Y).fingerprint(),
        data.Arrays(other, Y).fingerprint(),
        data.Arrays(X, Y + 1).fingerprint(),
        data.Arrays(X.astype("float64"), Y).fingerprint(),
        data.Subset(data.Arrays(X, Y), [0, 1]).fingerprint(),
        data.Subset(data.Arrays(X, Y), [1, 0]).fingerprint(),
        data.Windows(Y, 2).fingerprint(),
        data.Windows(Y, 3).fingerprint(),
        data.Windows(Y + 1, 2).fingerprint(),
        before,
        data.Files(x, y).fingerprint(),
        data.Function(lambda i: i, 3).fingerprint(),
        data.Function(lambda i: i, 4).fingerprint(),
    ]
    assert len(set(prints)) == len(prints)


@pytest.mark.parametrize("shape", [(1500, 2000), (2, 1_100_000), (3, 0), (5,)])
def test_a_digest_is_that_of_all_bytes_whatever_their_number(shape: tuple[int, ...]) -> None:
    """Larger arrays are read piece by piece; a sample may be larger than a piece."""
    array = np.arange(math.prod(shape), dtype="float32").reshape(shape)
    for given in (array, array[::-1]):
        digest = hashlib.sha256(given.tobytes()).hexdigest()
        assert data.Arrays(given).fingerprint() == f"float32 {shape} with SHA-256 {digest}"


def test_a_source_without_a_fingerprint_of_its_own() -> None:
    class Seven(data.Source):
        def __len__(self) -> int:
            return 7

    assert Seven().fingerprint() == "7 samples of a Seven"
