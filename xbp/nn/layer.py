"""The core: a layer's forward returns its own backward.

There is no tape. What a backward needs it holds in its closure, next to the formula
it implements; nothing of one call is kept on the layer. So a layer may be used twice, and dropping
the closure frees the memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from xbp.arguments import described
from xbp.backend import (
    HOST,
    Array,
    Backend,
    HostArray,
    Namespace,
    array_namespace,
    as_numbers,
    backend_of,
    dtype_name,
    is_floating,
    to_numpy,
    whereabouts,
)
from xbp.errors import BackendError, InputError, XBPError
from xbp.nn.backward import Backward, Rng, goes_by_forward, not_both, placed, shown
from xbp.nn.elsewhere import missing_from_layer
from xbp.nn.parameter import Buffer, Parameter
from xbp.nn.parts import PLAIN, check_nothing_hidden, parts, within

L = TypeVar("L", bound="Layer")

SHOWN = 10
"""The most problems that the refusal of a state names one by one."""


class Layer:
    """Base of all layers. A new one defines `forward`, and `__init__` if it has parameters.

    Parameters and sublayers are attributes, or members of attributes that are lists, tuples or
    dicts, at any depth, and are named after them: ``weight``, ``blocks.0.weight``,
    ``heads.left.weight``. Other containers (sets, generators, functions, objects) have no stable
    order and names: parameters in them are refused when parameters are first asked for.

    Examples
    --------
    A layer that scales each feature, y = s ∘ x, so ∂L/∂s = Σ_n dy ∘ x and ∂L/∂x = s ∘ dy:

    >>> import xbp
    >>> from xbp import nn
    >>> class Scale(nn.Layer):
    ...     def __init__(self, features):
    ...         self.scale = nn.Parameter(xbp.asarray([1.0] * features))
    ...
    ...     def forward(self, x, *, training=False, rng=None):
    ...         xp = self.check_input(x)
    ...         s, add_grad = self.scale.lend()
    ...
    ...         def backward(dy):
    ...             add_grad(xp.sum(dy * x, axis=0))
    ...             return s * dy
    ...
    ...         return s * x, backward
    >>> Scale(2)(xbp.asarray([[1.0, 2.0]])).tolist()
    [[1.0, 2.0]]
    """

    if not TYPE_CHECKING:  # for a type checker, a layer has no other attributes
        __getattr__ = missing_from_layer

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if vars(cls).get("__slots__"):
            msg = (
                f"{cls.__name__} has __slots__, where its parts would not be found; leave them out"
            )
            raise InputError(msg)
        if "forward" in vars(cls):
            cls.forward = placed(cls.forward)  # type: ignore[method-assign]
        if goes_by_forward(cls):
            cls.__call__ = Layer.__call__  # type: ignore[method-assign]

    def forward(
        self, x: Array, *, training: bool = False, rng: Rng = None
    ) -> tuple[Array, Backward]:
        """The output for `x`, and the function that turns ∂L/∂output into ∂L/∂x.

        Parameters
        ----------
        x : array
        training : bool, default False
            Whether layers with a training mode (Dropout, BatchNorm) are in it.
        rng : int, numpy.random.Generator, xbp.random.RandomStream or None
            The source of random masks. A layer that draws in training refuses None.

        Returns
        -------
        y : array
        backward : callable
            ``dx = backward(dy)``, which also adds to each `Parameter.grad`.

        Notes
        -----
        A forward that runs other layers hands `training` and `rng` on to their `forward`, and its
        backward runs theirs in reverse: ``y, backward = self.conv.forward(x, training=training,
        rng=rng)``. ``self.conv(x)`` would be inference, without a backward. `Composite` needs
        neither; a `Sequential` among the attributes runs as fast as a flat model.

        Do not change x or y in place before the backward has run: it holds the arrays themselves,
        and cannot notice. It does notice a parameter changed in place by an optimizer's step, by
        `Parameter.assign`, `load_state_dict`, or ``p.data -= …``, and then refuses to run (see
        `Parameter.lend`). A new array for a parameter (``p.data = …``, `to`, `astype`) does no
        harm: the backward keeps the old one.
        """
        msg = f"{type(self).__name__} has no forward; define forward(self, x, *, training, rng)"
        raise NotImplementedError(msg)

    def __call__(self, x: Array) -> Array:
        """Inference: the output alone."""
        result = self.forward(x)
        if isinstance(result, tuple) and len(result) == 2:
            y, backward = result
            if callable(backward) or backward is None:  # None: a layer for inference alone
                return y
        raise not_both(self, "forward", "output, backward", result)

    # --- checks for forward and backward ---

    def check_input(self, x: Array, *, integers: bool = False) -> Namespace:
        """Refuse an `x` that does not match this layer's own parameters; returns its namespace.

        Parameters
        ----------
        x : array
        integers : bool, default False
            Whether the layer takes integers, such as tokens, and not floating-point numbers.

        Returns
        -------
        xp : Namespace

        Raises
        ------
        BackendError
            `x` belongs to another library, or lies on another device, than a parameter.
        InputError
            `x` is no array, is of the wrong kind of dtype, or has another dtype than a parameter.
        """
        if type(x) is HostArray and x.dtype.kind == "f" and not integers:
            xp = HOST  # fast path of most calls
        else:
            xp = array_namespace(x)
            if not is_floating(x) or integers:
                return self._integers(x, xp, integers)
        for value in vars(self).values():
            kind = type(value)
            if kind is int:
                continue
            if kind is Parameter or (kind is Buffer and is_floating(value.data)):
                data = value.data
                if (
                    array_namespace(data) is not xp
                    or data.device != x.device
                    or data.dtype != x.dtype
                ):
                    raise self._apart(x, data)
            elif kind is tuple and value and type(value[0]) is int:
                continue  # usually a size
            elif kind not in PLAIN and not isinstance(value, Layer):
                for _, parameter in parts(self, "", value, (Parameter,)):
                    self._check_beside(x, parameter.data)
        return xp

    namespace = check_input  # its earlier name

    complex_gradients = False
    """Whether the backward is right for complex numbers, too.

    It is where each entry of y is a sum of entries of x with real factors. Then ∂L/∂x has the same
    factors, with ∂L/∂z = ∂L/∂(Re z) + i ∂L/∂(Im z), as in PyTorch. Any other formula would need the
    conjugates of its factors."""

    def check_gradient(
        self, xp: Namespace, dy: Array, shape: tuple[int, ...], *, chained: Sequence[Layer] = ()
    ) -> None:
        """Refuse a ∂L/∂y of another library than `xp`, or of another shape than the output.

        The first line of a backward: most formulas would broadcast another shape, or fail with the
        array library's message. `CheckedBackward` has checked the device already.

        Parameters
        ----------
        xp : Namespace
        dy : array
        shape : tuple of int
            The output's.
        chained : sequence of Layer, optional
            All layers of the same backward, of which this one is the last.

        Raises
        ------
        BackendError
            Another library.
        InputError
            Another shape, no array, or complex numbers, unless `complex_gradients`.
        """
        if type(dy) is HostArray and xp is HOST and dy.shape == shape and dy.dtype.kind == "f":
            return
        if getattr(dy, "shape", None) != shape:
            msg = (
                f"{shown(self)} got {described(dy)} as the gradient of an output of shape "
                f"{tuple(shape)}; check the loss or the backward that computed it"
            )
            raise InputError(msg)
        if array_namespace(dy) is not xp:
            msg = (
                f"{shown(self)} got a gradient on {whereabouts(dy)}, where its output is on "
                f"{whereabouts(xp.empty(0))}; move the gradient with xbp.asarray(…)"
            )
            raise BackendError(msg)
        kind = getattr(dy.dtype, "kind", None)  # that of numpy's and CuPy's dtypes
        if kind == "c" or (kind is None and "complex" in str(dy.dtype)):
            for layer in chained or (self,):
                if not layer.complex_gradients:
                    raise _only_real(layer)

    def checked(self, xp: Namespace, shape: tuple[int, ...], backward: Backward) -> Backward:
        """`backward`, preceded by `check_gradient`."""

        def checked(dy: Array) -> Array:
            self.check_gradient(xp, dy, shape)
            return backward(dy)

        return checked

    def _integers(self, x: Array, xp: Namespace, wanted: bool) -> Namespace:
        """Check an input of integers, or one that should be."""
        if not wanted:
            msg = (
                f"{shown(self)} needs floating-point input, got {dtype_name(x.dtype)}; convert "
                "numbers with xbp.asarray(x, dtype=…); a layer of tokens calls "
                "check_input(x, integers=True)"
            )
            raise InputError(msg)
        if not xp.isdtype(x.dtype, "integral"):
            msg = f"{shown(self)} needs integers, such as tokens, got {dtype_name(x.dtype)}"
            raise InputError(msg)
        for _, part in within(self, (Parameter,)):
            if array_namespace(part.data) is not xp or part.data.device != x.device:
                raise self._apart(x, part.data)
        return xp

    def _check_beside(self, x: Array, data: Array) -> None:
        beside = array_namespace(data) is array_namespace(x) and data.device == x.device
        if not beside or (is_floating(data) and data.dtype != x.dtype):
            raise self._apart(x, data)

    def _apart(self, x: Array, data: Array) -> XBPError:
        """The error for an input and a parameter that differ in library, device or dtype."""
        if array_namespace(data) is not array_namespace(x) or data.device != x.device:
            return BackendError(
                f"{shown(self)} got input on {whereabouts(x)}, but its parameters are on "
                f"{whereabouts(data)}; move the model with .to(…) or the input with "
                "xbp.asarray(…)"
            )
        return InputError(
            f"{shown(self)} got {dtype_name(x.dtype)} input, but its parameters are "
            f"{dtype_name(data.dtype)}; convert the input with "
            f"xbp.asarray(x, dtype={dtype_name(data.dtype)!r}) or the model with "
            f".astype({dtype_name(x.dtype)!r})"
        )

    # --- parts ---

    def children(self) -> Iterator[tuple[str, Layer]]:
        """The direct sublayers and their names: ``stem``, ``blocks.0``, ``heads.left``, …"""
        for name, part in within(self, PARTS):
            if isinstance(part, Layer):
                yield name, part

    def tree(self, inside: tuple[Layer, ...] = ()) -> Iterator[Layer]:
        """The layer itself and all layers below it; a shared one once for each use.

        Raises
        ------
        InputError
            A layer is a part of itself.
        """
        if any(self is outer for outer in inside):
            msg = (
                f"this {type(self).__name__} is a part of itself; hold the layer around it by "
                "weakref.proxy(…)"
            )
            raise InputError(msg)
        yield self
        for _, child in self.children():
            yield from child.tree((*inside, self))

    def named_parameters(self, *, frozen: bool = False) -> Iterator[tuple[str, Parameter]]:
        """(name, Parameter) pairs of all trainable parameters, each once, under its first name.

        Parameters
        ----------
        frozen : bool, default False
            Also those that are not `trainable`; no buffers.
        """
        seen: set[int] = set()
        for name, parameter in self._found():
            wanted = parameter.trainable or (frozen and not isinstance(parameter, Buffer))
            if wanted and id(parameter) not in seen:
                seen.add(id(parameter))
                yield name, parameter

    def parameters(self, *, frozen: bool = False) -> list[Parameter]:
        """Each trainable Parameter once, in the order of `named_parameters`; `frozen` as there."""
        return [parameter for _, parameter in self.named_parameters(frozen=frozen)]

    def named_buffers(self) -> Iterator[tuple[str, Buffer]]:
        """(name, Buffer) pairs of all buffers, each once, under its first name."""
        seen: set[int] = set()
        for name, part in self._found():
            if isinstance(part, Buffer) and id(part) not in seen:
                seen.add(id(part))
                yield name, part

    def _all_names(self, prefix: str) -> Iterator[tuple[str, Parameter]]:
        """All parameters, constants and buffers; a shared one under each of its names."""
        for name, part in within(self, PARTS):
            if isinstance(part, Parameter):
                yield prefix + name, part
        for name, child in self.children():
            yield from child._all_names(f"{prefix}{name}.")

    def _found(self) -> list[tuple[str, Parameter]]:
        """`_all_names`, after a check that no parameter is hidden from it."""
        layers = list(self.tree())
        named = list(self._all_names(""))
        known = {id(part) for part in layers} | {id(parameter) for _, parameter in named}
        if len(dict(named)) < len(named):
            names = [name for name, _ in named]
            twice = next(name for name in names if names.count(name) > 1)
            msg = f"two parts of this {type(self).__name__} have the name {twice!r}; rename one"
            raise InputError(msg)
        for layer in layers:
            check_nothing_hidden(layer, PARTS, known)
        return named

    # --- state ---

    def state_dict(self) -> dict[str, Any]:
        """Names to numpy arrays: copies of all parameters and buffers, shared ones repeated."""
        return {name: to_numpy(p.data).copy() for name, p in self._found()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Copy arrays of any library into parameters and buffers, in place; all of them, or none.

        Raises
        ------
        InputError
            A name is missing or unknown, a shape differs, or a value holds no numbers. Nothing has
            been changed then.
        """
        own = dict(self._found())
        if not isinstance(state, Mapping):
            kind = type(state).__name__
            msg = f"a state is a dict of names to arrays, as from state_dict(); got a {kind}"
            raise InputError(msg)
        state = {name: as_numbers(value) for name, value in state.items()}
        problems = [f"{name!r} is missing" for name in own if name not in state]
        problems += [f"{name!r} is unknown" for name in state if name not in own]
        common = {name: (state[name], own[name]) for name in own if name in state}
        for name, (new, old) in common.items():
            if new.shape != old.shape:
                problems.append(f"{name!r} has shape {new.shape} in place of {old.shape}")
            elif new.dtype.kind == "c" and "complex" not in str(old.data.dtype):
                problems.append(f"{name!r} is complex in place of {dtype_name(old.data.dtype)}")
            elif new.dtype.kind not in "biu" and not is_floating(old.data):
                problems.append(f"{name!r} is {new.dtype} in place of {dtype_name(old.data.dtype)}")
        if problems:
            shown, more = ", ".join(problems[:SHOWN]), len(problems) - SHOWN
            rest = f", and {more} more" if more > 0 else ""
            msg = f"the state does not fit this {type(self).__name__}: {shown}{rest}"
            raise InputError(msg)
        for name, parameter in own.items():
            parameter.assign(state[name])

    def to(self: L, backend: str | Backend, *, device: Any = None) -> L:
        """Move all parameters and buffers to a backend, in place; returns the layer itself.

        Make an optimizer afterwards: its state does not move with the parameters.
        """
        for _, parameter in self._found():
            parameter.to(backend, device=device)
        return self

    def astype(self: L, dtype: Any) -> L:
        """Convert all parameters and buffers to a dtype, e.g. ``"float64"``, in place.

        Integers, such as counters, keep their dtype. Returns the layer itself.
        """
        for _, parameter in self._found():
            parameter.astype(dtype)
        return self

    def backend(self) -> Backend | None:
        """The backend of the first parameter; None without parameters."""
        first = next(self._all_names(""), None)
        return None if first is None else backend_of(first[1].data)

    def dtypes(self) -> list[Any]:
        """The distinct floating-point dtypes of parameters and buffers, as their library's own."""
        found = (p.data.dtype for _, p in self._all_names("") if is_floating(p.data))
        return list({dtype_name(dtype): dtype for dtype in found}.values())

    # --- repr ---

    def options(self) -> str:
        """The arguments in the repr, e.g. ``"3, 8, kernel_size=(5, 5)"``."""
        return ""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.options()})"


def _only_real(layer: Layer) -> InputError:
    """The error for complex numbers in a backward of real ones."""
    return InputError(
        f"{shown(layer)} has no backward for complex numbers; only layers that move, add or "
        "average entries have one, such as Flatten and AvgPool2d: give real and imaginary parts as "
        "features of their own"
    )


PARTS: tuple[type[Layer | Parameter], ...] = (Parameter, Layer)
