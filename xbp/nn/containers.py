"""Layers around other layers: a shortcut past them, several side by side."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from xbp.arguments import described
from xbp.backend import Array, array_namespace, check_beside
from xbp.errors import InputError, UnknownNameError
from xbp.nn.backward import (
    Backward,
    Rng,
    TwoPartBackward,
    for_parameters,
    run_forward,
    without_backward,
)
from xbp.nn.layer import Layer
from xbp.nn.sequential import Sequential
from xbp.primitives import add
from xbp.random import as_stream

MOST = 8
"""Arrays that CuPy joins in one go without an upload."""


class Residual(Layer):
    """y = F(x) + S(x), with F the composition of the layers and S the shortcut.

    ∂L/∂x = F′ᵀ ∂L/∂y + S′ᵀ ∂L/∂y: both get the whole ∂L/∂y, and their results are summed (He et
    al. 2016, eqs. 1-2). In training F draws random numbers before S.

    Parameters
    ----------
    *layers : Layer
        F; two or more form a `Sequential`.
    shortcut : Layer, optional
        S; by default the identity, which requires an F that keeps the shape.

    Attributes
    ----------
    body, shortcut : Layer
        The first part of keys in state dicts: ``body.`` (``body.0.`` for two or more layers) and
        ``shortcut.``.

    Raises
    ------
    InputError
        There is no layer; in forward, F(x) and S(x) differ in shape.

    Examples
    --------
    >>> import numpy as np
    >>> from xbp import nn
    >>> y, backward = nn.Residual(nn.ReLU()).forward(np.array([[2.0, -3.0]]))
    >>> y.tolist(), backward(np.array([[1.0, 1.0]])).tolist()
    ([[4.0, -3.0]], [[2.0, 1.0]])
    """

    def __init__(self, *layers: Layer, shortcut: Layer | None = None) -> None:
        if not layers:
            msg = "Residual takes at least one layer"
            raise InputError(msg)
        whole = Sequential(*layers)  # refuses what is no layer
        self.body = layers[0] if len(layers) == 1 else whole
        self.shortcut = None if shortcut is None else _layer("Residual's shortcut", shortcut)

    def forward(
        self, x: Array, *, training: bool = False, rng: Rng = None
    ) -> tuple[Array, Backward]:
        rng = as_stream(rng) if training else None
        f, back_f = run_forward(self.body, x, training=training, rng=rng)
        if self.shortcut is None:
            return self._sum(f, x), TwoPartBackward(_beside_the_identity(back_f))
        s, back_s = run_forward(self.shortcut, x, training=training, rng=rng)
        return self._sum(f, s), TwoPartBackward(_gradients_of([back_f, back_s], shared=True))

    @without_backward
    def __call__(self, x: Array) -> Array:
        return self._sum(self.body(x), x if self.shortcut is None else self.shortcut(x))

    def _sum(self, f: Array, s: Array) -> Array:
        if f.shape != s.shape and not _may_fit(f.shape, s.shape):
            what = "the input" if self.shortcut is None else "its shortcut makes an output"
            advice = "; give it a shortcut=…" if self.shortcut is None else ""
            msg = (
                f"{type(self).__name__} adds outputs of one shape, but its layers make "
                f"{tuple(f.shape)}, where {what} of shape {tuple(s.shape)}{advice}"
            )
            raise InputError(msg)
        return add(f, s)

    def __repr__(self) -> str:
        return _with_children(self)


class Parallel(Layer):
    """(y_1, …, y_k) with y_i = F_i(x): several layers on one input.

    ∂L/∂x = Σ_i F_i′ᵀ ∂L/∂y_i. The output is a tuple, for `Concatenate` or for a layer or loss of
    several inputs; the backward takes a tuple of gradients. In training the branches draw random
    numbers in their order.

    Parameters
    ----------
    *branches : Layer
        Named ``"0"``, ``"1"``, … in state dicts.
    **named : Layer
        Further branches, by name: ``Parallel(left=…, right=…)``.

    Raises
    ------
    InputError
        There is no branch, or a branch is no layer.

    Examples
    --------
    >>> import numpy as np
    >>> from xbp import nn
    >>> both = nn.Parallel(nn.Identity(), nn.ReLU())
    >>> y, backward = both.forward(np.array([[2.0, -3.0]]))
    >>> [part.tolist() for part in y]
    [[[2.0, -3.0]], [[2.0, 0.0]]]
    >>> backward((np.ones((1, 2)), np.ones((1, 2)))).tolist()
    [[2.0, 1.0]]
    """

    def __init__(self, *branches: Layer, **named: Layer) -> None:
        found = {str(index): branch for index, branch in enumerate(branches)} | named
        if not found:
            msg = "Parallel takes at least one layer"
            raise InputError(msg)
        self.branches = {k: _layer(f"Parallel's branch {k!r}", v) for k, v in found.items()}

    def forward(self, x: Array, *, training: bool = False, rng: Rng = None) -> tuple[Any, Backward]:
        rng = as_stream(rng) if training else None
        pairs = [run_forward(f, x, training=training, rng=rng) for f in self.branches.values()]
        backwards = [backward for _, backward in pairs]
        gradients = _gradients_of(backwards, shared=False)

        def check(dy: Any) -> None:
            if not isinstance(dy, tuple | list) or len(dy) != len(backwards):
                msg = (
                    f"{type(self).__name__} has {len(backwards)} outputs, and its backward takes a "
                    f"tuple of as many gradients, got {described(dy)}"
                )
                raise InputError(msg)

        return tuple(y for y, _ in pairs), TwoPartBackward(gradients, check=check)

    @without_backward
    def __call__(self, x: Array) -> Any:
        return tuple(branch(x) for branch in self.branches.values())

    def children(self) -> Iterator[tuple[str, Layer]]:
        """The branches by their bare names: ``left``, not ``branches.left``."""
        yield from self.branches.items()

    def __len__(self) -> int:
        return len(self.branches)

    def __iter__(self) -> Iterator[Layer]:
        return iter(self.branches.values())

    def __getitem__(self, name: str | int) -> Layer:
        """A branch by its name; the i-th of those without a name has the name ``"i"``.

        Raises
        ------
        UnknownNameError
            There is no branch of this name.
        """
        try:
            return self.branches[str(name)]
        except KeyError:
            msg = f"there is no branch {name!r}; there are {', '.join(self.branches)}"
            raise UnknownNameError(msg) from None

    def __repr__(self) -> str:
        return _with_children(self)


class Concatenate(Layer):
    """Arrays of a tuple joined along an axis; the backward splits ∂L/∂y into their gradients.

    Parameters
    ----------
    axis : int, default 1
        The axis of channels or features; not 0, the batch axis.

    Notes
    -----
    Input: a tuple of arrays (N, …) that agree in the sizes of all other axes.

    Raises
    ------
    InputError
        The axis is 0; in forward, there is no such axis, or the other sizes differ.

    Examples
    --------
    >>> import numpy as np
    >>> from xbp import nn
    >>> y, backward = nn.Concatenate().forward((np.array([[1.0, 2.0]]), np.array([[3.0]])))
    >>> y.tolist(), [part.tolist() for part in backward(y)]
    ([[1.0, 2.0, 3.0]], [[[1.0, 2.0]], [[3.0]]])
    """

    complex_gradients = True

    def __init__(self, axis: int = 1) -> None:
        if not isinstance(axis, int) or isinstance(axis, bool) or axis == 0:
            msg = f"axis must be an integer, and not 0, along which samples lie; got {axis!r}"
            raise InputError(msg)
        self.axis = axis

    def forward(self, x: Any, *, training: bool = False, rng: Rng = None) -> tuple[Array, Backward]:
        axis = self._axis(x)
        parts = list(x)
        xp = self.namespace(parts[0])
        ends = [0]
        for part in parts:
            ends.append(ends[-1] + part.shape[axis])
        while len(parts) > 1:
            parts = [xp.concat(parts[i : i + MOST], axis=axis) for i in range(0, len(parts), MOST)]
        y = parts[0]
        shape, before = y.shape, (slice(None),) * axis

        def backward(dy: Array) -> Any:
            self.check_gradient(xp, dy, shape)
            return tuple(dy[(*before, slice(a, b), ...)] for a, b in pairwise(ends))

        return y, backward

    def _axis(self, x: Any) -> int:
        """The axis as a number of at least 0, after a check of the tuple."""
        if not isinstance(x, tuple | list) or not x:
            msg = f"{self} takes a tuple of arrays, as Parallel makes it, got {described(x)}"
            raise InputError(msg)
        for part in x:
            array_namespace(part)
            check_beside(self, "an input", x[0], "another is", part)
        ndim = x[0].ndim
        axis = self.axis + ndim if self.axis < 0 else self.axis
        others = {(*part.shape[:axis], *part.shape[axis + 1 :]) for part in x}
        kinds = {(part.ndim, str(part.dtype)) for part in x}
        if not 0 < axis < ndim or len(others) > 1 or len(kinds) > 1:
            shapes = ", ".join(f"{tuple(part.shape)} of {part.dtype}" for part in x)
            msg = f"{self} takes arrays that agree in all but that axis, got {shapes}"
            raise InputError(msg)
        return axis

    def options(self) -> str:
        return f"axis={self.axis}"


def _may_fit(one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    """Whether shapes are equal as far as their sizes are known: None is not, as in an export."""
    pairs = zip(one, other, strict=False)
    return len(one) == len(other) and all(a == b or None in (a, b) for a, b in pairs)


def _layer(what: str, given: Any) -> Layer:
    """`given`, if it is a layer.

    Raises
    ------
    InputError
    """
    if not isinstance(given, Layer):
        msg = f"{what} must be a layer, got {described(given)}"
        raise InputError(msg)
    return given


def _gradients_of(backwards: list[Backward], *, shared: bool) -> Any:
    """The gradients of several layers on one input, given one ∂L/∂y (`shared`) or one each."""

    def gradients(dy: Any, wants_dx: bool) -> tuple[Array]:
        given = [dy] * len(backwards) if shared else dy
        if not wants_dx:
            for backward, part in zip(backwards, given, strict=True):
                for_parameters(backward)(part)
            return (None,)
        first, *others = (b(part) for b, part in zip(backwards, given, strict=True))
        for other in others:
            first = add(first, other)
        return (first,)

    return gradients


def _beside_the_identity(backward: Backward) -> Any:
    """The gradients of F(x) + x."""

    def gradients(dy: Array, wants_dx: bool) -> tuple[Array]:
        return (add(backward(dy), dy) if wants_dx else for_parameters(backward)(dy),)

    return gradients


def _with_children(layer: Layer) -> str:
    """A repr with the sublayers, as that of `Sequential`."""
    lines = [f"  ({name}): {child!r}".replace("\n", "\n  ") for name, child in layer.children()]
    return "\n".join([f"{type(layer).__name__}(", *lines, ")"])
