"""Array libraries, their devices and arrays, and the current backend.

Computation follows its inputs (`array_namespace`) and never asks for the current backend, which
only says where *new* arrays are created: parameters, data, random numbers.

From the ground up: `foreign` (arrays of other libraries, array-like objects), `memory` and
`graphs`, `libraries` (the table of libraries), `arrays` (properties of arrays), `dtypes`, `places`
(backends), `current`.
"""

from xbp.backend.arrays import (
    HOST,
    MOST_AT_ONCE,
    HostArray,
    array_namespace,
    as_numbers,
    check_beside,
    fetch,
    fill_slots,
    free_memory,
    graph_for,
    is_floating,
    is_kind,
    is_lost,
    joined,
    on_device_of,
    on_host,
    plain,
    there,
    to_numpy,
    whereabouts,
    writable,
)
from xbp.backend.current import asarray, get_backend, set_backend, use_backend
from xbp.backend.dtypes import dtype_name, resolve
from xbp.backend.graphs import RECORDING, CuPyGraph, Graph, NotMadeError, ReplayError, TorchGraph
from xbp.backend.libraries import (
    ANYWHERE,
    LIBRARIES,
    Array,
    ArrayAPIStrict,
    CuPy,
    Fetch,
    Library,
    Namespace,
    NumPy,
    Torch,
    library_of,
    library_of_type,
)
from xbp.backend.memory import asked_for, out_of_memory
from xbp.backend.places import (
    Backend,
    available_backends,
    backend_of,
    find_backend,
    why_unavailable,
)
from xbp.errors import brief

__all__ = [
    "ANYWHERE",
    "HOST",
    "MOST_AT_ONCE",
    "LIBRARIES",
    "Array",
    "ArrayAPIStrict",
    "Backend",
    "CuPy",
    "CuPyGraph",
    "Fetch",
    "Graph",
    "HostArray",
    "Library",
    "Namespace",
    "NotMadeError",
    "NumPy",
    "RECORDING",
    "ReplayError",
    "Torch",
    "TorchGraph",
    "array_namespace",
    "as_numbers",
    "asarray",
    "asked_for",
    "available_backends",
    "backend_of",
    "brief",
    "check_beside",
    "dtype_name",
    "fetch",
    "fill_slots",
    "find_backend",
    "free_memory",
    "get_backend",
    "graph_for",
    "is_floating",
    "is_kind",
    "is_lost",
    "joined",
    "library_of",
    "library_of_type",
    "on_device_of",
    "on_host",
    "out_of_memory",
    "plain",
    "resolve",
    "set_backend",
    "there",
    "to_numpy",
    "writable",
    "use_backend",
    "whereabouts",
    "why_unavailable",
]
