"""The faults that can be planted in the source of a module, by kind.

==============  ================================================================================
scaled          a result, gradient or update 1 % too large
shifted         the same, too large by 0.01
sign            a minus removed, + and - exchanged, an abs or sign removed
transposed      a transpose removed; the shape stays that of the transpose
mask            a comparison that is always true, always false, or removed
off by one      an index, bound, count or comparison
axis            the neighbouring axis, one of several axes removed
swapped         two arguments, two results, height and width, one entry of a pair for the other
dtype           a result rounded to float32, or in another dtype
waits           a result that is read, which waits on a device: a hidden float()
dropped         a term, factor, function, statement or accumulation removed
constant        a constant 1 % too large
condition       a condition, or a boolean result, negated
==============  ================================================================================
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

BOOKKEEPING = {
    *("__init__", "__repr__", "__len__", "__iter__", "__getitem__", "options", "_shown"),
    *("namespace", "check", "_check_shapes", "_check_labels", "_check_input", "_checked"),
    *("_checked_step", "children", "named_parameters", "parameters", "_all_names", "state_dict"),
    *("load_state_dict", "to", "astype", "backend", "shape", "draw", "assign", "trace", "summary"),
    *("state_names", "_check_keys", "_check_place", "_count", "lr", "zero_grad"),
    *("find", "registered", "enabled", "disabled", "_load", "library", "available_level"),
    *("status", "_features", "threads", "levels", "compiler", "build", "primitive"),
    *("blas", "memory"),  # the path of a library; reused memory
    *("for_parameters",),
}
"""Functions that compute nothing; their tests check names and messages."""

BOUNDARY = {ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Lt: ast.LtE, ast.LtE: ast.Lt}
TERMS = ast.Add | ast.Sub | ast.Mult | ast.Div | ast.Pow
BITS = ast.BitAnd | ast.BitOr | ast.BitXor | ast.LShift | ast.RShift
CHOICES = {"maximum", "minimum", "min", "max"}  # of two arguments; the order does not matter
SIGNS = {"abs", "sign", "copysign"}
FUNCTIONS = {"exp", "expm1", "log", "log1p", "sqrt", "tanh", "floor", "reversed", "astype", "cos"}
ARRAYS = ("Array", "Drawn", "Backward", "States", "Real")
FUNCTIONAL = ("TwoPartBackward(", ".add_grad")  # returns a function
SPEED = ("LEAST_", "MOST_THREADS")  # the choice of an implementation, not a result
PAIRS = {"kernel_size", "stride", "padding"}
Function = ast.FunctionDef | ast.Lambda


@dataclass(frozen=True)
class Fault:
    """One wrong change, with the means to make it."""

    module: str
    function: str
    """The qualified name of the innermost function around it."""
    kind: str
    before: str
    after: str
    statement: str
    parent: ast.AST
    field: str
    index: int | None
    node: Any

    def __str__(self) -> str:
        change = f"`{self.before}` as `{self.after}`"
        if self.statement != self.before:
            change += f" in `{self.statement}`"
        return f"{self.module}.{self.function}, {self.kind}: {change}"

    def plant(self) -> None:
        """Change the tree in which it was found."""
        if self.index is None:
            setattr(self.parent, self.field, self.node)
        else:
            getattr(self.parent, self.field)[self.index] = self.node


def faults(module: str, tree: ast.Module) -> Iterator[Fault]:
    """All faults of a module; each changes `tree` when it is planted."""
    seen: dict[str, int] = {}
    for owner, name in _formulas(tree):
        for fault in _Search(module, name).within(owner):
            # The same expression may occur twice in one function.
            count = seen[str(fault)] = seen.get(str(fault), 0) + 1
            yield fault if count == 1 else _numbered(fault, count)


def _numbered(fault: Fault, count: int) -> Fault:
    return Fault(**{**vars(fault), "statement": f"{fault.statement} ({count})"})


def _formulas(tree: ast.Module) -> Iterator[tuple[ast.stmt, str]]:
    """(node, name) of functions that compute, and of their constants."""
    for node in tree.body:
        scope = [(node, "")]
        if isinstance(node, ast.ClassDef):
            scope = [(member, f"{node.name}.") for member in node.body]
        for member, prefix in scope:
            if isinstance(member, ast.FunctionDef) and member.name not in BOOKKEEPING:
                if not _is_abstract(member):
                    yield member, prefix + member.name
            elif isinstance(member, ast.Assign) and isinstance(member.targets[0], ast.Name):
                yield member, prefix + member.targets[0].id


def _is_abstract(function: ast.FunctionDef) -> bool:
    return isinstance(function.body[-1], ast.Raise)


class _Search:
    """The faults within one function."""

    def __init__(self, module: str, name: str, statement: str = "") -> None:
        self.module, self.name, self.here = module, name, statement
        self.arrays = self.device = self.truth = False

    def within(self, owner: ast.stmt) -> Iterator[Fault]:
        self.here = _text(owner)
        if isinstance(owner, ast.Assign) and self.name.startswith(SPEED):
            return
        if isinstance(owner, ast.Assign):
            for parent, field, index, node in _places(owner):
                if _is_number(node) and node.value:
                    yield self.fault("constant", parent, field, index, _times(node, "1.01"))
            return
        assert isinstance(owner, ast.FunctionDef)
        returns = ast.unparse(owner.returns) if owner.returns else ""
        # Annotations tell arrays from other values; numpy's are on the host.
        self.arrays = any(word in returns for word in ARRAYS)
        self.device = self.arrays and not any(word in returns for word in ("Drawn", "ND", "Real"))
        self.truth = returns == "bool" or returns.startswith(("TypeGuard[", "TypeIs["))
        if returns == "None":
            self.arrays = self.device = True
        yield from self.defaults(owner)
        yield from self.body(owner)

    def fault(
        self, kind: str, parent: ast.AST, field: str, index: int | None, node: Any, before: Any = 0
    ) -> Fault:
        if not before:
            before = getattr(parent, field) if index is None else getattr(parent, field)[index]
        ast.fix_missing_locations(ast.copy_location(node, before))
        texts = _text(before), _text(node), self.here
        return Fault(self.module, self.name, kind, *texts, parent, field, index, node)

    def defaults(self, owner: ast.FunctionDef) -> Iterator[Fault]:
        for field in ("defaults", "kw_defaults"):
            for index, node in enumerate(getattr(owner.args, field)):
                if _is_number(node) or isinstance(node, ast.Call | ast.BinOp):
                    zero = isinstance(node, ast.Constant) and not node.value
                    how = "shifted" if zero else "scaled"
                    yield self.fault("constant", owner.args, field, index, _wrong(how, node))

    def body(self, function: Function) -> Iterator[Fault]:
        """A function's own code, without inner functions, which have their own names."""
        local = {n.name for n in ast.walk(function) if isinstance(n, ast.FunctionDef)}
        if isinstance(function, ast.Lambda):
            yield from self.result(function, "body", None, local)
        for parent, field, index, node in _places(function):
            if isinstance(node, ast.stmt):
                self.here = _text(node)
            if isinstance(node, ast.Lambda) and getattr(parent, "arg", "") == "key":
                continue
            if isinstance(node, ast.FunctionDef | ast.Lambda):
                name = f"{self.name}.<locals>.{getattr(node, 'name', '<lambda>')}"
                inner = _Search(self.module, name, self.here)
                inner.arrays, inner.device = self.arrays, self.device
                yield from inner.body(node)
            elif isinstance(node, ast.stmt):
                yield from self.statement(parent, field, index, node, local)
            else:
                yield from self.expression(parent, field, index, node)

    def result(
        self, parent: ast.AST, field: str, index: int | None, local: set[str]
    ) -> Iterator[Fault]:
        """The results of a function: each entry of a tuple, except functions."""
        node = getattr(parent, field) if index is None else getattr(parent, field)[index]
        if isinstance(node, ast.Tuple):
            for position in range(len(node.elts)):
                yield from self.result(node, "elts", position, local)
            return
        is_function = isinstance(node, ast.Lambda) or (
            isinstance(node, ast.Name) and (node.id in local or "backward" in node.id)
        )
        is_fixed = isinstance(node, ast.Constant | ast.ListComp | ast.List | ast.Starred)
        is_fixed |= isinstance(node, ast.Name) and node.id in ("xp", "NotImplemented")
        # Uninitialized memory has no values that could be wrong.
        is_fixed |= ".empty(" in ast.unparse(node)
        is_function |= any(word in ast.unparse(node) for word in FUNCTIONAL)
        if is_function or is_fixed:
            return
        if self.truth:
            yield self.fault("condition", parent, field, index, _negated(node))
            return
        yield self.fault("scaled", parent, field, index, _wrong("scaled", node))
        yield self.fault("shifted", parent, field, index, _wrong("shifted", node))
        if self.arrays:
            yield self.fault("dtype", parent, field, index, _wrong("rounded", node))
            yield self.fault("dtype", parent, field, index, _wrong("dtype", node))
        is_option = isinstance(node, ast.Attribute) and ast.unparse(node.value) == "self"
        if self.device and not is_option:
            yield self.fault("waits", parent, field, index, _wrong("waited", node))

    def statement(
        self, parent: ast.AST, field: str, index: int | None, node: ast.stmt, local: set[str]
    ) -> Iterator[Fault]:
        if isinstance(node, ast.Return) and node.value is not None:
            yield from self.result(node, "value", None, local)
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Yield):
            return
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            yield self.fault("dropped", parent, field, index, ast.Pass())
            if "add_grad" in ast.unparse(node.value.func):
                yield from self.result(node.value, "args", 0, local)
        elif isinstance(node, ast.AugAssign):
            yield self.fault("dropped", parent, field, index, ast.Pass())
            yield self.fault("dropped", parent, field, index, _assigned(node))
            if isinstance(node.op, ast.Add | ast.Sub):
                other = ast.Sub() if isinstance(node.op, ast.Add) else ast.Add()
                replacement = ast.AugAssign(node.target, other, node.value)
                yield self.fault("sign", parent, field, index, replacement)
            if isinstance(node.op, ast.Add | ast.Sub) and self.arrays:
                yield from self.result(node, "value", None, local)
        elif isinstance(node, ast.Assign):
            names = node.targets[0]
            if isinstance(names, ast.Tuple):
                yield from self.swaps(names, "elts")
        elif isinstance(node, ast.If):
            yield self.fault("condition", node, "test", None, _negated(node.test))

    def expression(
        self, parent: ast.AST, field: str, index: int | None, node: ast.AST
    ) -> Iterator[Fault]:
        def fault(kind: str, replacement: ast.AST) -> Fault:
            return self.fault(kind, parent, field, index, replacement)

        if isinstance(node, ast.BinOp) and isinstance(node.op, TERMS | BITS):
            yield fault("dropped", node.left)
            yield fault("dropped", node.right)
            if isinstance(node.op, ast.Add | ast.Sub):
                other = ast.Sub() if isinstance(node.op, ast.Add) else ast.Add()
                yield fault("sign", ast.BinOp(node.left, other, node.right))
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.FloorDiv):
            yield fault("off by one", ast.BinOp(node, ast.Add(), ast.Constant(1)))
        elif isinstance(node, ast.UnaryOp) and not isinstance(node.operand, ast.Constant):
            kind = {ast.USub: "sign", ast.Invert: "mask", ast.Not: "condition"}[type(node.op)]
            yield fault(kind, node.operand)
        elif isinstance(node, ast.Compare) and len(node.ops) == 1:
            (op,) = node.ops
            if ast.unparse(node.comparators[0]).startswith(SPEED):
                return
            if not isinstance(parent, ast.If | ast.IfExp | ast.While):
                yield fault("mask", ast.BinOp(node, ast.BitOr(), ast.Constant(True)))
                yield fault("mask", ast.BinOp(node, ast.BitAnd(), ast.Constant(False)))
            if type(op) in BOUNDARY:
                there = ast.Compare(node.left, [BOUNDARY[type(op)]()], node.comparators)
                yield fault("off by one", there)
        elif isinstance(node, ast.IfExp):
            yield self.fault("condition", node, "test", None, _negated(node.test))
        elif isinstance(node, ast.Call):
            yield from self.call(parent, field, index, node)
        elif isinstance(node, ast.Subscript):
            yield from self.indices(node)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            if node.attr == "T":
                yield fault("transposed", _wrong("untransposed", node.value))
            elif node.attr in PAIRS and "prod" not in ast.unparse(parent):
                mirrored = ast.Subscript(node, ast.Slice(step=ast.Constant(-1)), ast.Load())
                yield fault("swapped", mirrored)
        elif isinstance(node, ast.List) and len(node.elts) > 1:
            yield from self.swaps(node, "elts")
        elif _is_number(node) and not isinstance(parent, ast.Subscript | ast.Slice | ast.UnaryOp):
            assert isinstance(node, ast.Constant)
            if isinstance(node.value, float):
                yield fault("constant", _times(node, "1.01") if node.value else _parsed("0.01"))
            elif not isinstance(parent, ast.Tuple | ast.keyword):
                yield fault("off by one", ast.Constant(node.value + 1))

    def call(
        self, parent: ast.AST, field: str, index: int | None, node: ast.Call
    ) -> Iterator[Fault]:
        def fault(kind: str, replacement: ast.AST) -> Fault:
            return self.fault(kind, parent, field, index, replacement)

        name = ast.unparse(node.func).rpartition(".")[2]
        of_xp = ast.unparse(node.func).startswith("xp.")
        if name in CHOICES and len(node.args) == 2:
            yield fault("dropped", node.args[0])
            yield fault("dropped", node.args[1])
        elif name in SIGNS | FUNCTIONS and node.args:
            yield fault("sign" if name in SIGNS else "dropped", node.args[0])
        elif name == "range":
            last = min(len(node.args) - 1, 1)
            less = ast.BinOp(node.args[last], ast.Sub(), ast.Constant(1))
            yield self.fault("off by one", node, "args", last, less)
        elif name == "matrix_transpose":
            yield fault("transposed", _wrong("untransposed", node.args[0]))
        elif name == "permute_dims" and isinstance(node.args[1], ast.Tuple):
            yield fault("transposed", _wrong("untransposed", node.args[0], *node.args[1].elts))
        elif name == "where":
            condition = node.args[0]
            if not isinstance(condition, ast.Compare):  # which masks itself
                for op, value in ((ast.BitOr(), True), (ast.BitAnd(), False)):
                    always = ast.BinOp(condition, op, ast.Constant(value))
                    yield self.fault("mask", node, "args", 0, always)
            yield from self.swaps(node, "args", first=1)
        elif not of_xp:
            simple = all(isinstance(a, ast.Name | ast.Attribute | ast.Subscript) for a in node.args)
            if simple and len(node.args) > 1 and name not in CHOICES | {"isinstance", "zip"}:
                yield from self.swaps(node, "args", first=1 if "im" in name else 0)
        for keyword in node.keywords:
            if keyword.arg == "axis":
                for axes in _other_axes(keyword.value):
                    yield self.fault("axis", keyword, "value", None, axes)

    def indices(self, node: ast.Subscript) -> Iterator[Fault]:
        """The wrong entry, row, or range of rows."""
        where = node.slice
        parts = (
            [(where, "elts", i, part) for i, part in enumerate(where.elts)]
            if isinstance(where, ast.Tuple)
            else [(node, "slice", None, where)]
        )
        for parent, field, index, part in parts:
            value = _integer(part)
            if value is not None:
                wrong = ast.Constant(1 - value if value in (0, 1) else value + 1)
                if value < 0:
                    wrong = ast.Constant(value - 1)
                yield self.fault("off by one", parent, field, index, wrong)
            elif isinstance(part, ast.Slice):
                for bound, change in (("lower", ast.Add()), ("upper", ast.Sub())):
                    old = getattr(part, bound)
                    if old is not None:
                        new = ast.BinOp(old, change, ast.Constant(1))
                        yield self.fault("off by one", part, bound, None, new)

    def swaps(self, node: ast.AST, field: str, *, first: int = 0) -> Iterator[Fault]:
        """Two neighbours in a list exchanged, in a copy of the whole."""
        items = getattr(node, field)
        for i in range(first, len(items) - 1):
            if isinstance(items[i], ast.Starred) or isinstance(items[i + 1], ast.Starred):
                continue
            if ast.unparse(items[i]) == ast.unparse(items[i + 1]):
                continue
            order = [*items[:i], items[i + 1], items[i], *items[i + 2 :]]
            other = type(node)(**{**vars(node), field: order})
            # the list itself is replaced, not an entry
            texts = _text(node), _text(other), self.here
            yield Fault(self.module, self.name, "swapped", *texts, node, field, None, order)


def _places(root: ast.AST) -> Iterator[tuple[ast.AST, str, int | None, ast.AST]]:
    """(parent, field, index, node) below `root`, without refusals, names, types and texts.

    Inner functions are included, but not their bodies.
    """
    for field, value in ast.iter_fields(root):
        if field in ("annotation", "returns", "args", "decorator_list", "func", "format_spec"):
            if not (field == "args" and isinstance(root, ast.Call)):
                if not (field == "func" and isinstance(value, ast.Attribute)):
                    continue
        for index, node in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if not isinstance(node, ast.AST) or _is_refusal(node):
                continue
            if isinstance(node, ast.JoinedStr | ast.Raise | ast.Assert | ast.expr_context):
                continue
            yield root, field, index, node
            if not isinstance(node, ast.FunctionDef | ast.Lambda):
                yield from _places(node)


def _is_refusal(node: ast.AST) -> bool:
    """An `if` that raises an error, which checks the caller."""
    return isinstance(node, ast.If) and isinstance(node.body[-1], ast.Raise)


def _text(node: ast.AST) -> str:
    """A statement on one line, or the head of a compound statement."""
    text = ast.unparse(ast.fix_missing_locations(copy.deepcopy(node)))
    if isinstance(node, ast.If | ast.For | ast.While | ast.FunctionDef | ast.With | ast.Try):
        return text.strip().splitlines()[0]
    return " ".join(text.split())


def _is_number(node: Any) -> bool:
    return isinstance(node, ast.Constant) and type(node.value) in (int, float)


def _integer(node: ast.AST) -> int | None:
    try:
        value = ast.literal_eval(node)
    except ValueError:
        return None
    return value if type(value) is int else None


def _parsed(text: str) -> ast.expr:
    return ast.parse(text, mode="eval").body


def _times(node: ast.expr, factor: str) -> ast.expr:
    return ast.BinOp(node, ast.Mult(), _parsed(factor))


def _wrong(how: str, *values: ast.expr) -> ast.expr:
    return ast.Call(_parsed(f"wrong.{how}"), list(values), [])


def _negated(test: ast.expr) -> ast.expr:
    return ast.UnaryOp(ast.Not(), test)


def _assigned(node: ast.AugAssign) -> ast.stmt:
    """An assignment in place of an accumulation."""
    target = node.target
    if isinstance(target, ast.Name):  # the same array gets the new values
        text = f"{target.id}[...] = 0"
        assignment = ast.parse(text).body[0]
        assert isinstance(assignment, ast.Assign)
        assignment.value = node.value
        return assignment
    return ast.Assign([copy.copy(target)], node.value)


def _other_axes(value: ast.expr) -> Iterator[ast.expr]:
    axis = _integer(value)
    if axis is not None:
        yield ast.Constant(axis - 1)
    elif isinstance(value, ast.Tuple):
        for i, entry in enumerate(value.elts):
            rest = [*value.elts[:i], *value.elts[i + 1 :]]
            yield rest[0] if len(rest) == 1 else ast.Tuple(rest, ast.Load())
            other = _integer(entry)
            if other is not None and other + 1 not in map(_integer, value.elts):
                shifted = [*value.elts[:i], ast.Constant(other + 1), *value.elts[i + 1 :]]
                yield ast.Tuple(shifted, ast.Load())
    else:
        yield ast.BinOp(value, ast.Sub(), ast.Constant(1))
