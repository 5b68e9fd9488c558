"""The table of CuPy's rules: for each name, calls with the stated effect, by stand-ins and a GPU.

`test_cupy_itself_agrees_with_the_table` runs where there is a GPU; it has not been run yet.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import xbp
from xbp.backend import available_backends, brief, graph_for
from xbp.testing import HostSyncError, RecordingError, assert_no_host_sync, emulated_graphs
from xbp.testing.cupy_rules import LIBRARY, RULES, SAFE, UPLOAD, WAIT, Rule, Verdict, names, verdict

Call = Callable[[Any, Any], Any]


def samples() -> SimpleNamespace:
    """Arrays to call functions with, on the current backend."""
    ints = np.array([[3, 1, 2], [1, 2, 3]])
    floats = np.array([[0.5, -0.25, 0.75], [0.1, 0.2, -0.3]])
    square = np.array([[2.0, 0.5, 0.1], [0.5, 3.0, 0.2], [0.1, 0.2, 1.5]])
    return SimpleNamespace(
        **{name: xbp.asarray(array) for name, array in {
            "i": ints, "x": floats, "above": floats + 2, "q": square, "v": square[0],
            "mask": floats > 0, "one": np.array([1]), "scalar": np.array(2), "half": np.array(0.5),
        }.items()},
    )  # fmt: skip


def function(name: str, *arguments: str, **keywords: Any) -> tuple[str, Verdict, Call]:
    """A call with samples of these names, that is safe."""

    def call(xp: Any, s: Any) -> Any:
        for part in name.split("."):
            xp = getattr(xp, part)
        return xp(*(getattr(s, argument) for argument in arguments), **keywords)

    return name, SAFE, call


UNARY = names("""
    abs acos acosh asin asinh atan atanh ceil cos cosh exp expm1 floor isfinite isinf isnan
    log log10 log1p log2 negative positive reciprocal round sign signbit sin sinh sqrt
    square tan tanh trunc all any argmax argmin count_nonzero max mean min prod std sum var
    argsort sort empty_like ones_like zeros_like tril triu flip matrix_transpose asarray
    broadcast_arrays meshgrid linalg.matrix_transpose linalg.diagonal linalg.trace
    linalg.vector_norm clip unstack diff
""")
OUTSIDE = {
    **dict.fromkeys(("acosh", "log", "log10", "log2", "sqrt"), "above"),
    "sign": "i", "meshgrid": "v",
}  # fmt: skip
BINARY = names("""
    add atan2 copysign divide equal floor_divide greater greater_equal hypot less less_equal
    logaddexp maximum minimum multiply nextafter not_equal pow remainder subtract
""")
BITS = names("bitwise_and bitwise_left_shift bitwise_or bitwise_right_shift bitwise_xor")
OPERATORS = names("""
    __add__ __floordiv__ __mod__ __mul__ __sub__ __truediv__ __eq__ __ge__ __gt__ __le__
    __lt__ __ne__ __radd__ __rmul__ __rsub__ __rtruediv__ __rfloordiv__ __rmod__ __iadd__
    __imul__ __isub__ __itruediv__ __ifloordiv__ __imod__
""")
BIT_OPERATORS = names("""
    __and__ __or__ __xor__ __lshift__ __rshift__ __pow__ __rand__ __ror__ __rxor__
    __rlshift__ __rrshift__ __rpow__ __iand__ __ior__ __ixor__ __ilshift__ __irshift__
    __ipow__
""")


def method(name: str, verdict: Verdict = SAFE, of: str = "x", *others: str) -> Any:
    def call(xp: Any, s: Any) -> Any:
        return getattr(type(s.x), name)(getattr(s, of), *(getattr(s, other) for other in others))

    return name, verdict, call


def examples() -> Iterator[tuple[str, Verdict, Call]]:
    """Calls of every name of the table: the name, the effect, the function to call."""
    yield from (function(name, OUTSIDE.get(name, "x")) for name in UNARY)
    yield from ((name, SAFE, of_complex(name)) for name in ("conj", "imag", "real"))
    yield from (function(name, "above", "x") for name in BINARY)
    yield from (function(name, "i", "i") for name in BITS)
    yield from (function(f"logical_{name}", "mask", "mask") for name in ("and", "or", "xor"))
    yield function("logical_not", "mask")
    yield function("bitwise_invert", "i")
    yield from (method(name, SAFE, "x", "above") for name in OPERATORS)
    yield from (method(name, SAFE, "i", "i") for name in BIT_OPERATORS)
    yield from (method(name, SAFE, "x") for name in ("__abs__", "__neg__", "__pos__"))
    yield method("__invert__", SAFE, "i")
    yield from CALLS


def of_complex(name: str) -> Call:
    return lambda xp, s: getattr(xp, name)(xp.astype(s.x, xp.complex128))


def many(s: Any, n: int = 9) -> list[Any]:
    return [s.x] * n


def large(xp: Any) -> Any:
    """2 MiB."""
    return xp.zeros((2**18,), dtype=xp.float64)


SOLVERS = names("""
    cholesky det eigh eigvalsh inv matrix_rank qr slogdet svd svdvals
""")

CALLS: list[tuple[str, Verdict, Call]] = [
    # --- creation, dtypes ---
    ("empty", SAFE, lambda xp, s: xp.zeros_like(xp.empty((2, 3)))),
    ("eye", SAFE, lambda xp, s: xp.eye(3)),
    ("full", SAFE, lambda xp, s: xp.full((2,), 0.5)),
    ("full_like", SAFE, lambda xp, s: xp.full_like(s.x, 0.5)),
    ("ones", SAFE, lambda xp, s: xp.ones((2,))),
    ("zeros", SAFE, lambda xp, s: xp.zeros((2,))),
    ("arange", SAFE, lambda xp, s: xp.arange(1, 7, 2)),
    ("linspace", SAFE, lambda xp, s: xp.linspace(0.0, 1.0, 5)),
    ("asarray", SAFE, lambda xp, s: xp.asarray(0.5)),
    ("astype", SAFE, lambda xp, s: xp.astype(s.x, xp.float32)),
    ("can_cast", SAFE, lambda xp, s: xp.can_cast(s.x.dtype, xp.float64)),
    ("finfo", SAFE, lambda xp, s: xp.finfo(s.x.dtype)),
    ("iinfo", SAFE, lambda xp, s: xp.iinfo(s.i.dtype)),
    ("isdtype", SAFE, lambda xp, s: xp.isdtype(s.x.dtype, "real floating")),
    ("result_type", SAFE, lambda xp, s: xp.result_type(s.x, s.x)),
    # --- shapes ---
    ("broadcast_shapes", SAFE, lambda xp, s: xp.broadcast_shapes((2, 1), (3,))),
    ("broadcast_to", SAFE, lambda xp, s: xp.broadcast_to(s.v, (2, 3))),
    ("expand_dims", SAFE, lambda xp, s: xp.expand_dims(s.x, axis=0)),
    ("moveaxis", SAFE, lambda xp, s: xp.moveaxis(s.x, 0, 1)),
    ("permute_dims", SAFE, lambda xp, s: xp.permute_dims(s.x, (1, 0))),
    ("reshape", SAFE, lambda xp, s: xp.reshape(s.x, (-1,))),
    ("roll", SAFE, lambda xp, s: xp.roll(s.x, 1)),
    ("squeeze", SAFE, lambda xp, s: xp.squeeze(s.one, axis=0)),
    ("tile", SAFE, lambda xp, s: xp.tile(s.x, (2, 1))),
    ("repeat", SAFE, lambda xp, s: xp.repeat(s.x, 2)),
    ("stack", SAFE, lambda xp, s: xp.stack(many(s, 8))),
    ("concat", SAFE, lambda xp, s: xp.concat(many(s, 8))),
    ("concat", SAFE, lambda xp, s: xp.concat([large(xp)] * 9)),
    ("__iter__", SAFE, lambda xp, s: list(s.v)),
    # --- values ---
    ("where", SAFE, lambda xp, s: xp.where(s.mask, s.x, 0.0)),
    ("cumulative_sum", SAFE, lambda xp, s: xp.cumulative_sum(s.x, axis=1)),
    ("cumulative_prod", SAFE, lambda xp, s: xp.cumulative_prod(s.x, axis=1)),
    ("searchsorted", SAFE, lambda xp, s: xp.searchsorted(xp.sort(s.v), s.v)),
    ("isin", SAFE, lambda xp, s: xp.isin(s.i, s.one)),
    ("take", SAFE, lambda xp, s: xp.take(s.x, s.one, axis=1)),
    ("take_along_axis", SAFE, lambda xp, s: xp.take_along_axis(s.x, s.i[:, :1] - 1, axis=1)),
    ("__getitem__", SAFE, lambda xp, s: s.x[:, 1:]),
    ("__getitem__", SAFE, lambda xp, s: s.x[s.one, s.one]),
    ("__setitem__", SAFE, lambda xp, s: s.x.__setitem__((0, ...), s.v)),
    ("__setitem__", SAFE, lambda xp, s: s.x.__setitem__((0, ...), 0.5)),
    # --- products that CuPy does without cuBLAS ---
    ("matmul", SAFE, lambda xp, s: xp.matmul(s.v, s.v)),
    ("matmul", SAFE, lambda xp, s: xp.matmul(s.i, s.i.T)),
    ("__matmul__", SAFE, lambda xp, s: s.v @ s.v),
    ("linalg.outer", SAFE, lambda xp, s: xp.linalg.outer(s.v, s.v)),
    ("linalg.cross", SAFE, lambda xp, s: xp.linalg.cross(s.v, s.v)),
    # --- waits ---
    ("sign", WAIT, lambda xp, s: xp.sign(s.x)),
    ("clip", WAIT, lambda xp, s: xp.clip(s.x, 0.0)),
    ("clip", WAIT, lambda xp, s: xp.clip(s.x, max=0.0)),
    ("repeat", WAIT, lambda xp, s: xp.repeat(s.v, s.i[0, ...])),
    ("arange", WAIT, lambda xp, s: xp.arange(s.scalar)),
    ("linspace", WAIT, lambda xp, s: xp.linspace(0.0, s.half, 3)),
    ("nonzero", WAIT, lambda xp, s: xp.nonzero(s.x)),
    ("unique_all", WAIT, lambda xp, s: xp.unique_all(s.x)),
    ("unique_counts", WAIT, lambda xp, s: xp.unique_counts(s.x)),
    ("unique_inverse", WAIT, lambda xp, s: xp.unique_inverse(s.x)),
    ("unique_values", WAIT, lambda xp, s: xp.unique_values(s.x)),
    ("__getitem__", WAIT, lambda xp, s: s.x[s.mask]),
    ("__getitem__", WAIT, lambda xp, s: s.v[: s.scalar]),
    ("__setitem__", WAIT, lambda xp, s: s.x.__setitem__(s.mask, 0.0)),
    ("__float__", WAIT, lambda xp, s: float(s.half)),
    ("__int__", WAIT, lambda xp, s: int(s.scalar)),
    ("__bool__", WAIT, lambda xp, s: bool(s.half > 0)),
    ("__bool__", WAIT, lambda xp, s: 1 if s.half > 0 else 2),
    ("__bool__", WAIT, lambda xp, s: max(s.half, s.half)),
    ("__contains__", WAIT, lambda xp, s: 0.5 in s.v),
    ("__complex__", WAIT, lambda xp, s: complex(s.half)),
    ("__index__", WAIT, lambda xp, s: [1, 2, 3][s.scalar]),
    ("__format__", WAIT, lambda xp, s: f"{s.half}"),
    ("__str__", WAIT, lambda xp, s: str(s.x)),
    ("__repr__", WAIT, lambda xp, s: repr(s.x)),
    # --- uploads ---
    ("asarray", UPLOAD, lambda xp, s: xp.asarray([1.0, 2.0])),
    ("asarray", UPLOAD, lambda xp, s: xp.asarray(range(2))),
    ("asarray", UPLOAD, lambda xp, s: xp.asarray(np.ones(2))),
    ("asarray", UPLOAD, lambda xp, s: xp.asarray(np.ones(0))),
    ("stack", UPLOAD, lambda xp, s: xp.stack(many(s))),
    ("concat", UPLOAD, lambda xp, s: xp.concat(many(s))),
    # --- handles of CuPy's ---
    ("matmul", LIBRARY, lambda xp, s: xp.matmul(s.q, s.q)),
    ("__matmul__", LIBRARY, lambda xp, s: s.q @ s.q),
    ("tensordot", LIBRARY, lambda xp, s: xp.tensordot(s.q, s.q, axes=1)),
    ("vecdot", LIBRARY, lambda xp, s: xp.vecdot(s.q, s.q)),
    *(
        (f"linalg.{name}", LIBRARY, lambda xp, s, name=name: getattr(xp.linalg, name)(s.q, s.q))
        for name in ("matmul", "vecdot", "solve")
    ),
    ("linalg.tensordot", LIBRARY, lambda xp, s: xp.linalg.tensordot(s.q, s.q, axes=1)),
    ("linalg.matrix_norm", SAFE, lambda xp, s: xp.linalg.matrix_norm(s.q)),
    ("linalg.matrix_norm", LIBRARY, lambda xp, s: xp.linalg.matrix_norm(s.q, ord=2)),
    ("linalg.pinv", WAIT, lambda xp, s: xp.linalg.pinv(s.q)),
    ("linalg.matrix_power", LIBRARY, lambda xp, s: xp.linalg.matrix_power(s.q, 2)),
    *(
        (f"linalg.{name}", LIBRARY, lambda xp, s, name=name: getattr(xp.linalg, name)(s.q))
        for name in SOLVERS
    ),
]  # fmt: skip

EXAMPLES = list(examples())
IDS = [f"{name}-{what.name}-{i}" for i, (name, what, _) in enumerate(EXAMPLES)]

UNCALLED = {
    "__reduce__", "__dlpack__", "from_dlpack", "to_device", "fill", "__imatmul__", "__rmatmul__",
    "linalg.eig", "linalg.eigvals",
}  # fmt: skip
"""Without an example: what array_api_strict lacks on its devices, or shows of another name."""


@pytest.fixture(params=["array_api_strict", "torch"])
def standin(request: pytest.FixtureRequest) -> Iterator[Any]:
    pytest.importorskip(request.param)
    with xbp.use_backend(request.param) as backend, emulated_graphs():
        yield backend


@pytest.mark.parametrize(("name", "expected", "call"), EXAMPLES, ids=IDS)
def test_the_stand_ins_do_by_the_table(
    name: str, expected: Verdict, call: Call, standin: Any
) -> None:
    s = samples()
    graph: Any = graph_for(s.x)
    if expected is SAFE:
        graph.record(lambda: call(standin.xp, s))
        graph.replay()
    else:
        with pytest.raises(RecordingError, match=expected.value):
            graph.record(lambda: call(standin.xp, s))
    if standin.name == "array_api_strict":
        with assert_no_host_sync():
            if expected is WAIT:
                with pytest.raises(HostSyncError, match="waits for the device"):
                    call(standin.xp, s)
            else:
                call(standin.xp, s)


def test_every_name_of_the_table_has_its_example() -> None:
    of = {name: {what for n, what, _ in EXAMPLES if n == name} for name in RULES}
    for name, rules in RULES.items():
        if name not in UNCALLED | {"where", "take", "__setitem__", "__getitem__"}:
            assert of[name] >= {rule.verdict for rule in rules}, name
            assert of[name], name


@pytest.mark.skipif("cupy" not in available_backends(), reason="no GPU with CuPy")
@pytest.mark.skipif("cupy" not in available_backends(), reason="no GPU with CuPy")
def test_cupy_itself_agrees_with_the_table() -> None:
    """Each call eagerly under guard, then in a capture."""
    wrong = []
    with xbp.use_backend("cupy") as backend:
        for name, expected, call in EXAMPLES:
            s = samples()
            graph: Any = graph_for(s.x)
            work = partial(call, backend.xp, s)
            waits = recorded = True
            try:
                with assert_no_host_sync():
                    work()
                waits = False
                graph.warm_up(work)
                graph.record(work)
                graph.replay()
            except Exception as error:  # CuPy has no exception class of its own for this
                recorded, reason = False, brief(error)
            if waits is not (expected is WAIT) or recorded is not (expected is SAFE):
                wrong.append((name, expected, reason if not recorded else "recorded"))
    assert not wrong


def test_every_function_of_the_standard_has_a_row() -> None:
    xp = pytest.importorskip("array_api_strict")
    ours = {"__array_namespace_info__", *(n for n in xp.__all__ if n.endswith("strict_flags"))}
    functions = {n for n in xp.__all__ if type(getattr(xp, n)).__name__ == "function"} - ours
    assert functions <= set(RULES)
    own = vars(type(xp.zeros(1)))
    operators = {name for name in own if name.startswith("__") and callable(own[name])}
    quiet = {"__new__", "__buffer__", "__array__", "__array_namespace__", "__dlpack_device__"}
    assert operators - quiet <= set(RULES)


ROOMS = ("nn", "optim", "primitives", "training", "models", "random.py", "images.py")


def used(path: Path) -> Iterator[str]:
    """The names of a namespace that a file reads: `xp.name` and `xp.linalg.name`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name | ast.Call):
            if ast.unparse(node.value).split("(")[0].endswith(("xp", "array_namespace")):
                yield node.attr
        if isinstance(node, ast.Attribute) and ast.unparse(node).startswith("xp.linalg."):
            yield f"linalg.{node.attr}"


def test_every_name_that_layers_use_has_a_row() -> None:
    package = Path(xbp.__file__).parent
    files = [f for room in ROOMS for f in [package / room, *(package / room).rglob("*.py")]]
    found = {name for file in files if file.suffix == ".py" for name in used(file)}
    assert {"where", "matmul", "take", "sort"} <= found
    constants = {"bool", "int64", "int32", "uint32", "uint64", "float32", "float64", "linalg"}
    unknown = found - constants - set(RULES)
    assert not unknown, f"no row in xbp.testing.cupy_rules for {unknown}"


def test_a_verdict_is_found_by_the_arguments() -> None:
    assert verdict("repeat", None, 2) == Rule(SAFE)
    assert verdict("take", None, [1, 2]).verdict is UPLOAD
    assert verdict("__getitem__", None, [1, 2]).verdict is UPLOAD
    assert verdict("where", None).verdict is WAIT
