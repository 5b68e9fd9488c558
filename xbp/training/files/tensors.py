"""Arrays and a JSON document in one safetensors file: one function writes it, one class reads it.

As it is one file, its content belongs to one moment. Reading it runs no code from the file, and
takes no memory for sizes that the header merely claims: they are checked against the file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from xbp.arguments import described
from xbp.backend import to_numpy
from xbp.errors import DataError, InputError, on_one_line
from xbp.paths import open_file, path_of
from xbp.training.files.writing import replacing

DTYPES = {  # that the format and numpy have in common
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "U16": "uint16",
    "I16": "int16",
    "U32": "uint32",
    "I32": "int32",
    "U64": "uint64",
    "I64": "int64",
    "F16": "float16",
    "F32": "float32",
    "F64": "float64",
    "C64": "complex64",
}
KEY = "xbp"
"""The only entry of the metadata: several have no fixed order, and files would differ."""
DIGEST = "sha256"
MAX_HEADER = 100_000_000
"""The limit of the format's own reader, in bytes."""


def write_tensors(
    path: str | os.PathLike[str],
    arrays: Mapping[str, Any],
    document: Mapping[str, Any],
) -> None:
    """Write arrays of any library, and a JSON document; the file appears whole or not at all.

    It contains a digest of both, which `TensorFile.read` checks, as safetensors has no checksum.

    Raises
    ------
    DataError
        The folder does not exist or cannot be written to, or the disk is full.
    InputError
        An array has a dtype that the format lacks, or the document does not fit into the header.
    """
    from safetensors.numpy import save

    if not (isinstance(arrays, Mapping) and all(isinstance(name, str) for name in arrays)):
        msg = f"expected a dict of names to arrays, as model.state_dict(); got {described(arrays)}"
        raise InputError(msg)
    plain = {name: _plain(name, value) for name, value in arrays.items()}
    text = json.dumps(dict(document), default=plain_scalar)
    signed = json.dumps({**json.loads(text), DIGEST: _digest(text, plain)})
    content = save(plain, {KEY: signed})
    if int.from_bytes(content[:8], "little") > MAX_HEADER:
        msg = f"the document for {str(path)!r} is too long for the format's {MAX_HEADER:,} bytes"
        raise InputError(msg)
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def plain_scalar(value: Any) -> Any:
    """A numpy scalar as a JSON value."""
    if isinstance(value, np.generic):
        return value.item()
    msg = f"a {type(value).__name__} cannot be saved; give numbers, texts, lists, dicts and arrays"
    raise InputError(msg)


def _plain(name: str, value: Any) -> NDArray[Any]:
    """`value` as a numpy array in C order, of a dtype that the format has.

    safetensors 0.8 stores the wrong bytes, silently, for arrays that are not C-contiguous:
    https://github.com/safetensors/safetensors/issues/825
    """
    array = np.asarray(to_numpy(value), order="C")  # ascontiguousarray makes 0-d arrays 1-d
    if array.dtype.name not in DTYPES.values() or name == "__metadata__":
        msg = (
            f"{name!r} of dtype {array.dtype} cannot be saved as safetensors; "
            "give it another name or dtype, such as float32"
        )
        raise InputError(msg)
    return _little_endian(array)


def _little_endian(array: NDArray[Any]) -> NDArray[Any]:
    """The bytes of an array in the byte order of the format."""
    return array.astype(array.dtype.newbyteorder("<"), copy=False)


def _digest(text: str, arrays: Mapping[str, NDArray[Any]]) -> str:
    """SHA-256 of a document and of names, dtypes, shapes and bytes of arrays in C order."""
    import hashlib  # here, as it takes milliseconds of `import xbp`

    digest = hashlib.sha256(text.encode())
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype.name} {array.shape} ".encode())
        digest.update(_little_endian(array).tobytes())
    return digest.hexdigest()


class TensorFile:
    """A safetensors file whose header has been read and checked; its arrays are read on demand.

    Parameters
    ----------
    path : path-like

    Attributes
    ----------
    path : Path
    document : dict
        The document given to `write_tensors`; empty if another program wrote the file.
    shapes, dtypes : dict
        Of each array, by its name; dtypes as numpy's names.

    Raises
    ------
    DataError
        The file is missing, unreadable, no regular file, or no complete safetensors file; or its
        document is malformed.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        from safetensors import SafetensorError, safe_open

        self.path = path_of(path, "a safetensors file")
        self.name = repr(str(path))  # quoted, as a name may have any characters
        open_file(path, "a safetensors file").close()  # its reader calls any failure absence
        try:
            file: Any = safe_open(self.path, framework="np")
            names = file.keys()
            slices = {name: file.get_slice(name) for name in names}
            text = (file.metadata() or {}).get(KEY, "{}")
        except (SafetensorError, OSError, ValueError) as error:
            self.refuse(f"is no safetensors file ({error}); fetch or write it again")
        self._file = file
        self.shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
        kinds = {name: part.get_dtype() for name, part in slices.items()}
        for name, kind in kinds.items():
            if kind not in DTYPES:
                self.refuse(f"has {name!r} in {kind}, which numpy lacks; save it as float32 (F32)")
            if len(self.shapes[name]) > 64 or max(self.shapes[name], default=0) > 2**40:
                self.refuse(f"has {name!r} of a shape beyond numpy; it is corrupt")
        self.dtypes = {name: DTYPES[kind] for name, kind in kinds.items()}
        try:
            self.document = json.loads(text)
            self._sum = isinstance(self.document, dict) and self.document.pop(DIGEST, None)
            self._text = json.dumps(self.document)
        except (ValueError, RecursionError) as error:
            self.refuse(f"has a description that is not JSON ({error}); write it again")
        if not isinstance(self.document, dict):
            self.refuse("has a description that is no JSON object; write it again")

    def read(self) -> dict[str, NDArray[Any]]:
        """All arrays, by their names.

        Raises
        ------
        DataError
            The digest does not match, or the arrays do not fit into memory.
        """
        try:
            arrays = {name: self._file.get_tensor(name) for name in self.shapes}
            digest = _digest(self._text, arrays)
        except MemoryError:
            self.refuse("does not fit into memory; free some")
        except ValueError as error:
            self.refuse(f"cannot be read ({error}); it is corrupt: fetch it again")
        if self.document and self._sum != digest:
            self.refuse("is corrupt: its content does not have its checksum; fetch it again")
        return arrays

    def refuse(self, why: str) -> NoReturn:
        """Raise a `DataError` that says what is wrong with the file."""
        msg = f"{self.name} {on_one_line(why)}"
        raise DataError(msg)


def part(arrays: Mapping[str, NDArray[Any]], prefix: str) -> dict[str, NDArray[Any]]:
    """The arrays whose names begin with `prefix`, by the rest of their names."""
    return {
        name.removeprefix(prefix): array
        for name, array in arrays.items()
        if name.startswith(prefix)
    }
