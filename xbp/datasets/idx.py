"""The reader of LeCun's IDX format, in which MNIST and its relatives are published.

An IDX file is, with every number big-endian::

    0  0  type code  number of dimensions     one byte each
    each dimension                            uint32
    the items, the last index running fastest
"""

import math
import os
import struct
import zlib
from typing import IO, Any, cast

import numpy as np
from numpy.typing import NDArray

from xbp.errors import DataError
from xbp.paths import open_file

_DTYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_MAX_DIMENSIONS = 64  # numpy's limit

_GZIP_MAGIC = b"\x1f\x8b"
# Deflate spends at least two bits on a match, and a match yields at most 258 bytes.
_MAX_DEFLATE_RATIO = 1032
_CHUNK = 1 << 20


def read_idx(path: str | os.PathLike[str]) -> NDArray[Any]:
    """Read an IDX file, plain or gzip-compressed.

    Compression is detected from the first two bytes, not from the name. Memory grows with the
    content of the file, never with the sizes that its header claims, and reading stops as soon as
    the content exceeds the header.

    Parameters
    ----------
    path : path-like
        The file.

    Returns
    -------
    array : numpy.ndarray
        uint8, int8, int16, int32, float32 or float64 in native byte order, of the shape in the
        header (1 to 64 dimensions). Writable, and owned by the caller.

    Raises
    ------
    DataError
        If the file is missing, not a regular file, unreadable, empty, cut short, corrupt, longer
        than its header promises, or not IDX at all.
    """
    import gzip  # lazy: it would add milliseconds to `import xbp`

    name = repr(str(path))  # quoted, as a name may have any characters
    try:
        with open_file(path, "an IDX file (plain or gzip-compressed)") as file:
            size = os.fstat(file.fileno()).st_size
            compressed = file.read(2) == _GZIP_MAGIC
            file.seek(0)
            if not compressed:
                return _read_stream(file, size, name)
            with gzip.open(file) as content:
                return _read_stream(cast(IO[bytes], content), size * _MAX_DEFLATE_RATIO, name)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        msg = f"{name} is a truncated or corrupt gzip file ({error}); fetch it again"
        raise DataError(msg) from error
    except MemoryError as error:
        msg = f"{name} does not fit into memory; free some, or take a smaller set"
        raise DataError(msg) from error
    except OSError as error:
        msg = f"{name} cannot be read ({error.strerror or error}); check its path and permissions"
        raise DataError(msg) from error


def _read_stream(stream: IO[bytes], limit: int, name: str) -> NDArray[Any]:
    """Parse `stream`, which can hold at most `limit` bytes."""
    dtype, shape = _read_header(stream, name)
    promised = math.prod(shape) * dtype.itemsize
    claim = f"the {promised} bytes of {dtype.name} {shape} that its header promises"
    if promised > limit:
        msg = f"{name} is too small a file for {claim}; it is cut short or corrupt: fetch it again"
        raise DataError(msg)

    items = bytearray()
    # One byte more detects trailing data, and makes gzip verify its checksum at the end.
    while chunk := stream.read(min(_CHUNK, promised + 1 - len(items))):
        items += chunk
    if len(items) < promised:
        msg = f"{name} holds only {len(items)} of {claim}; it is cut short: fetch it again"
        raise DataError(msg)
    if len(items) > promised:
        msg = f"{name} holds more than {claim}; it is corrupt or not IDX: fetch it again"
        raise DataError(msg)

    array = np.frombuffer(items, dtype).astype(dtype.newbyteorder("="), copy=False)
    try:
        return array.reshape(shape)
    except ValueError as error:  # no items, but dimensions beyond numpy's range
        msg = f"{name} has the shape {shape}, too large for numpy; it is corrupt: fetch it again"
        raise DataError(msg) from error


def _read_header(stream: IO[bytes], name: str) -> tuple[np.dtype[Any], tuple[int, ...]]:
    """Read the type and the shape, and leave `stream` at the first item."""
    header = stream.read(4)
    if not header:
        msg = f"{name} is empty, where an IDX file was expected; fetch it again"
        raise DataError(msg)
    if any(header[:2]):
        msg = f"{name} starts with {header!r}, where IDX has two zero bytes; give an IDX file"
        raise DataError(msg)
    if len(header) == 4:
        header += stream.read(4 * header[3])
    if len(header) < 4 or len(header) < 4 + 4 * header[3]:
        msg = f"{name} ends after {len(header)} bytes, within its header; fetch it again"
        raise DataError(msg)

    code, dimensions = header[2], header[3]
    if code not in _DTYPES:
        known = ", ".join(f"0x{value:02X}" for value in _DTYPES)
        msg = f"{name} has the type code 0x{code:02X}, where IDX knows {known}; fetch it again"
        raise DataError(msg)
    if not 1 <= dimensions <= _MAX_DIMENSIONS:
        msg = f"{name} has {dimensions} dimensions, where 1 to 64 were expected; fetch it again"
        raise DataError(msg)
    return np.dtype(_DTYPES[code]), struct.unpack_from(f">{dimensions}I", header, 4)
