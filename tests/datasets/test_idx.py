"""`read_idx` against an independent writer, and against every way a file can be wrong."""

import gzip
import math
import os
import struct
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from nightly import NIGHTLY
from numpy.typing import NDArray

from xbp.datasets import read_idx
from xbp.errors import DataError

MIB = 1 << 20
CODES = {"u1": 0x08, "i1": 0x09, "i2": 0x0B, "i4": 0x0C, "f4": 0x0D, "f8": 0x0E}
STRUCT = {"u1": "B", "i1": "b", "i2": "h", "i4": "i", "f4": "f", "f8": "d"}
EXTREMES = {
    "u1": [0, 1, 255],
    "i1": [-128, 0, 127],
    "i2": [-32768, 258, 32767],
    "i4": [-(2**31), 66051, 2**31 - 1],
    "f4": [-1.5, 0.0, 2.0**-149],
    "f8": [-1.1, math.inf, math.nan],
}
reuses_tmp_path = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def header(code: int, *shape: int) -> bytes:
    return struct.pack(f">4B{len(shape)}I", 0, 0, code, len(shape), *shape)


def encode(array: NDArray[Any]) -> bytes:
    """Write IDX with the struct module, one item at a time."""
    kind = array.dtype.str[1:]
    items = (struct.pack(">" + STRUCT[kind], item) for item in array.ravel().tolist())
    return header(CODES[kind], *array.shape) + b"".join(items)


def plain(content: bytes) -> bytes:
    return content


compressions = pytest.mark.parametrize("compress", [plain, gzip.compress])


@pytest.fixture
def write(tmp_path: Path) -> Callable[[bytes], Path]:
    def write_file(content: bytes) -> Path:
        path = tmp_path / "file-idx"
        path.write_bytes(content)
        return path

    return write_file


def refusal(path: Path) -> str:
    """Check that `path` is refused in one line that names it, and return that line."""
    with pytest.raises(DataError) as caught:
        read_idx(path)
    message = str(caught.value)
    assert repr(str(path)) in message
    assert message.isprintable()
    return message


@contextmanager
def peak_below(limit: int) -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < limit, f"{peak / MIB:.1f} MiB were allocated"


def others(byte: int) -> list[int]:
    """Other values of a byte: all in a nightly run, else those of one bit and some more."""
    flipped = {byte ^ 1 << bit for bit in range(8)}
    some = range(256) if NIGHTLY else range(0, 256, 37)
    return sorted({*flipped, *some} - {byte})


class TestReads:
    @compressions
    @pytest.mark.parametrize("kind", CODES)
    def test_every_type_in_native_order(self, kind, compress, write):
        expected = np.array([EXTREMES[kind]], kind)
        array = read_idx(write(compress(encode(expected))))
        assert array.dtype == np.dtype(kind)
        assert array.dtype.isnative
        np.testing.assert_array_equal(array, expected)

    def test_a_file_written_by_hand(self, write):
        """Two rows of three int16, byte by byte: byte order and order of items."""
        content = "00 00 0B 02  00000002 00000003  0001 0002 0003  0100 FFFF 8000"
        array = read_idx(write(bytes.fromhex(content)))
        assert array.tolist() == [[1, 2, 3], [256, -1, -32768]]

    @reuses_tmp_path
    @given(data=st.data(), compress=st.sampled_from([plain, gzip.compress]))
    def test_random_shapes(self, data, compress, write):
        shapes = hnp.array_shapes(min_dims=1, max_dims=5, min_side=0, max_side=5)
        kind = data.draw(st.sampled_from(list(CODES)))
        expected = data.draw(hnp.arrays(kind, shapes))
        array = read_idx(write(compress(encode(expected))))
        assert array.dtype == expected.dtype
        np.testing.assert_array_equal(array, expected, strict=True)

    @compressions
    def test_more_than_one_chunk(self, compress, write):
        expected = np.random.default_rng(0).integers(0, 256, (3, MIB + 1), np.uint8)
        np.testing.assert_array_equal(
            read_idx(write(compress(header(8, *expected.shape) + expected.tobytes()))), expected
        )

    def test_64_dimensions(self, write):
        assert read_idx(write(header(8, *[1] * 64) + b"\x07")).shape == (1,) * 64

    def test_the_name_does_not_decide(self, tmp_path):
        content = encode(np.arange(5, dtype="i4"))
        for name, data in [("a.gz", content), ("b", gzip.compress(content))]:
            (tmp_path / name).write_bytes(data)
            assert read_idx(str(tmp_path / name)).tolist() == [0, 1, 2, 3, 4]

    @compressions
    @pytest.mark.parametrize("kind", ["u1", "f4"])
    def test_result_is_writable(self, kind, compress, write):
        array = read_idx(write(compress(encode(np.zeros(3, kind)))))
        array[:] = 1
        assert array.sum() == 3

    def test_gzip_of_several_members(self, write):
        content = encode(np.arange(9, dtype="i2"))
        path = write(gzip.compress(content[:11]) + gzip.compress(content[11:]))
        assert read_idx(path).tolist() == list(range(9))

    def test_the_best_compression_there_is(self, write):
        """Zeros, compressed almost at deflate's limit of 1032 to 1, are still read."""
        path = write(gzip.compress(header(8, 32 * MIB) + bytes(32 * MIB)))
        assert path.stat().st_size * 1020 < 32 * MIB
        assert read_idx(path).shape == (32 * MIB,)


class TestRefuses:
    def test_missing_file(self, tmp_path):
        assert "does not exist" in refusal(tmp_path / "absent")

    def test_folder(self, tmp_path):
        assert "is a folder" in refusal(tmp_path)

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes are POSIX")
    def test_named_pipe_instead_of_waiting_for_it(self, tmp_path):
        os.mkfifo(tmp_path / "pipe")
        assert "is a FIFO" in refusal(tmp_path / "pipe")

    def test_unreadable_path(self, tmp_path):
        assert "cannot be read (File name too long)" in refusal(tmp_path / ("x" * 300))

    def test_strange_file_name_stays_in_its_sentence(self, tmp_path):
        refusal(tmp_path / "two\nlines")

    @compressions
    def test_empty_file(self, compress, write):
        assert "is empty" in refusal(write(compress(b"")))

    @compressions
    @pytest.mark.parametrize("content", [b"\x93NUMPY\x01\x00", b"<!DOCTYPE html>", b"P", b"\0P"])
    def test_wrong_magic_number(self, content, compress, write):
        message = refusal(write(compress(content)))
        assert "two zero bytes" in message
        assert repr(content[:4]) in message

    @compressions
    @pytest.mark.parametrize("code", sorted(set(range(256)) - set(CODES.values())))
    def test_unknown_type_code(self, code, compress, write):
        message = refusal(write(compress(header(code, 1) + bytes(8))))
        assert f"type code 0x{code:02X}" in message
        assert "0x08, 0x09, 0x0B, 0x0C, 0x0D, 0x0E" in message

    @pytest.mark.parametrize("dimensions", [0, 65, 255])
    def test_number_of_dimensions(self, dimensions, write):
        message = refusal(write(header(8, *[1] * dimensions) + b"\x07"))
        assert f"{dimensions} dimensions" in message

    def test_no_items_in_a_shape_beyond_numpy(self, write):
        assert "too large for numpy" in refusal(write(header(8, 0, 2**32 - 1, 2**32 - 1)))

    @compressions
    @pytest.mark.parametrize("extra", [1, 2, 5 * MIB])
    def test_trailing_bytes(self, extra, compress, write):
        content = encode(np.arange(6, dtype="i4").reshape(2, 3)) + bytes(extra)
        message = refusal(write(compress(content)))
        assert "more than the 24 bytes of int32 (2, 3)" in message

    @compressions
    def test_short_file(self, compress, write):
        content = encode(np.arange(6, dtype="i4").reshape(2, 3))[:-1]
        message = refusal(write(compress(content)))
        assert "only 23 of the 24 bytes of int32 (2, 3)" in message

    @pytest.mark.parametrize(
        "compress", [plain, gzip.compress, lambda x: gzip.compress(x[:9]) + gzip.compress(x[9:])]
    )
    def test_truncation_at_every_byte(self, compress, write):
        content = compress(encode(np.arange(6, dtype="i2").reshape(2, 3)))
        for size in range(len(content)):
            refusal(write(content[:size]))

    @pytest.mark.parametrize("kind", CODES)
    def test_truncated_idx_inside_whole_gzip(self, kind, write):
        content = encode(np.array([EXTREMES[kind]], kind))
        for size in range(len(content)):
            refusal(write(gzip.compress(content[:size])))

    def test_mutated_header(self, write):
        """Any other value of any header byte is refused clearly, or swaps the type."""
        content = encode(np.arange(6, dtype="u1").reshape(2, 3))
        accepted = set()
        for position in range(12):
            for value in others(content[position]):
                mutant = bytearray(content)
                mutant[position] = value
                path = write(bytes(mutant))
                try:
                    array = read_idx(path)
                except DataError:
                    refusal(path)
                else:
                    accepted.add((position, value))
                    assert array.tolist() == [[0, 1, 2], [3, 4, 5]]
        assert accepted == {(2, 0x09)}  # uint8 read as int8

    def test_mutated_gzip(self, write):
        """Any other byte anywhere is refused, except where gzip stores no content."""
        original = np.arange(6, dtype="u1").reshape(2, 3)
        content = gzip.compress(encode(original), mtime=0)
        # Flags, time, system; and the last deflate byte, whose highest bits are padding.
        without_effect = {*range(3, 10), len(content) - 9}
        for position in range(len(content)):
            for value in others(content[position]):
                mutant = bytearray(content)
                mutant[position] = value
                path = write(bytes(mutant))
                try:
                    array = read_idx(path)
                except DataError:
                    refusal(path)
                else:
                    assert position in without_effect
                    np.testing.assert_array_equal(array, original, strict=True)

    @reuses_tmp_path
    @given(start=st.sampled_from([b"", b"\0\0\x08\x02", b"\0\0", b"\x1f\x8b"]), rest=st.binary())
    def test_random_bytes(self, start, rest, write):
        path = write(start + rest)
        try:
            read_idx(path)
        except DataError:
            refusal(path)

    @pytest.mark.parametrize("cut", [12, -9, -4, -1])
    def test_truncated_gzip_says_so(self, cut, write):
        content = gzip.compress(encode(np.arange(100, dtype="i4")))
        assert "truncated or corrupt gzip" in refusal(write(content[:cut]))

    def test_gzip_with_wrong_checksum(self, write):
        content = bytearray(gzip.compress(encode(np.arange(100, dtype="i4"))))
        content[-8] ^= 1
        assert "truncated or corrupt gzip file (CRC" in refusal(write(bytes(content)))


class TestMemory:
    """Neither the sizes in a header nor data beyond them cost memory."""

    @compressions
    @pytest.mark.parametrize("shape", [(MIB, MIB), (2**32 - 1,) * 3, (2**32 - 1,) * 64])
    def test_terabyte_header(self, shape, compress, write):
        path = write(compress(header(8, *shape) + bytes(100)))
        with peak_below(MIB):
            assert "too small a file" in refusal(path)

    def test_plausible_header_of_a_short_gzip(self, write):
        """Within deflate's ratio a header may be true: only the end of the stream shows."""
        noise = np.random.default_rng(0).bytes(MIB)
        path = write(gzip.compress(header(8, 1000 * MIB) + noise))
        with peak_below(5 * MIB):
            assert f"only {MIB} of" in refusal(path)

    @pytest.mark.parametrize("promised", [1, 1000, MIB])
    def test_gzip_bomb(self, promised, write):
        """A bomb without an end: a reader that goes on finds it truncated, not too long."""
        compressor = zlib.compressobj(wbits=31)
        bomb = compressor.compress(header(8, promised))
        bomb += b"".join(compressor.compress(bytes(MIB)) for _ in range(64))
        path = write(bomb)
        with peak_below(5 * MIB):
            assert f"more than the {promised} bytes" in refusal(path)

    def test_whole_file_is_held_once(self, write):
        path = write(header(8, 64 * MIB) + bytes(64 * MIB))
        with peak_below(80 * MIB):
            read_idx(path)
