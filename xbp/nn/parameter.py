"""The arrays of a layer: parameters, which are learned, and buffers, which are not."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from xbp.backend import (
    Array,
    HostArray,
    array_namespace,
    asarray,
    backend_of,
    check_beside,
    dtype_name,
    find_backend,
    is_floating,
    on_device_of,
    plain,
    resolve,
    writable,
)
from xbp.errors import InputError
from xbp.initializers import Initializer

if TYPE_CHECKING:
    from xbp.random import Generator


CHECK_BACKWARD = "check the backward that computed it"


class Parameter:
    """An array that an optimizer changes, and the gradient that backward passes add to.

    Parameters
    ----------
    data : array
        Of any backend, floating-point if `trainable`. It is copied only if it is read-only, as
        optimizers update it in place. A tensor that requires a gradient is detached.
    trainable : bool, default True
        False makes it a constant: it is moved, converted and saved with its layer, but takes no
        gradient and is not among `Layer.parameters`, so that an optimizer made afterwards does not
        change it. May be set later, to freeze a learned parameter.

    Raises
    ------
    InputError
        `data` is no array, has a mask, a unit or a dtype that xbp lacks, or is trainable and holds
        no floating-point numbers.

    Attributes
    ----------
    data : array
    version : int
        The number of known in-place changes of `data`; see `lend`.
    grad : array or None
        None until a backward ran; then of the shape and dtype of `data`, where `data` lives.

    Examples
    --------
    >>> import numpy as np
    >>> w = Parameter(np.ones(2))
    >>> w.add_grad(np.array([1.0, 2.0]))
    >>> w.add_grad(np.array([1.0, 2.0]))
    >>> w.grad.tolist()
    [2.0, 4.0]
    """

    __slots__ = ("data", "grad", "trainable", "version")

    def __init__(self, data: Array, *, trainable: bool = True) -> None:
        self.version = 0
        self.data = writable(plain(data))
        if trainable and not is_floating(self.data):
            msg = (
                f"a Parameter holds floating-point numbers, got {self.data.dtype}; convert them "
                "with xbp.asarray(x, dtype=…), or make it trainable=False"
            )
            raise InputError(msg)
        dtype_name(self.data.dtype)  # refuses one that xbp lacks
        self.trainable = trainable
        self.grad: Array | None = None

    @classmethod
    def draw(
        cls, shape: tuple[int, ...], init: Initializer, rng: Generator, dtype: Any
    ) -> Parameter:
        """A new parameter on the current backend, with values drawn by `init` from `rng`."""
        return cls(asarray(init(shape, rng), dtype=dtype))

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.data.shape)

    def __setattr__(self, name: str, value: Any) -> None:
        # ``p.data -= …`` also comes here: it changes the array in place, then sets it.
        if name == "data" and getattr(self, "data", None) is value:
            self.changed()
        object.__setattr__(self, name, value)

    def changed(self) -> None:
        """Note that `data` was changed in place, so that backwards that read it are stale."""
        _set_version(self, self.version + 1)

    def lend(self) -> tuple[Array, Callable[[Array], None]]:
        """`data` for a forward, and the `add_grad` of its backward, which needs `data` unchanged.

        Returns
        -------
        data : array
        add_grad : callable
            As the method, but with an InputError if `data` has been changed in place since, for
            example by an optimizer's step between forward and backward.
        """
        data, version = self.data, self.version

        def add_grad(grad: Array) -> None:
            self.check_unchanged(version)
            self.add_grad(grad)

        return data, add_grad

    def check_unchanged(self, version: int) -> None:
        """Refuse a backward whose forward read `data` at an earlier `version`.

        Raises
        ------
        InputError
        """
        if self.version != version:
            msg = (
                f"{self!r} was changed between a forward and its backward, whose gradients would "
                "be wrong; run the backward before the optimizer's step, or the forward again"
            )
            raise InputError(msg)

    def add_grad(self, grad: Array) -> None:
        """Add the contribution of a backward pass; a shared parameter sums several.

        The sum is a new array, so that `grad` may be a view.

        Raises
        ------
        BackendError
            `grad` is of another library or device than `data`.
        InputError
            `grad` does not have the shape or dtype of `data`, an error in a layer's backward.
        """
        data, before = self.data, self.grad
        if not type(grad) is type(data) is HostArray:
            check_beside("a parameter", "a gradient", grad, "its data are", data, CHECK_BACKWARD)
        if grad.shape != data.shape or grad.dtype != data.dtype:
            msg = (
                f"a gradient of shape {tuple(grad.shape)} and dtype {grad.dtype} does not fit its "
                f"parameter of shape {self.shape} and dtype {self.data.dtype}; "
                f"{CHECK_BACKWARD}"
            )
            raise InputError(msg)
        if not (before is None or type(grad) is type(before) is HostArray):
            check_beside("a parameter", "a gradient", grad, "its other gradient is", before)
        if not self.trainable:
            return
        if before is None:
            _set_grad(self, grad)
        else:
            with on_device_of(grad):
                _set_grad(self, before + grad)

    def zero_grad(self) -> None:
        """Forget the gradient."""
        _set_grad(self, None)

    def assign(self, value: Any) -> None:
        """Copy `value`, an array of any library, into `data`, in place."""
        with on_device_of(self.data):
            self.data[...] = backend_of(self.data).asarray(value, dtype=self.data.dtype)
        self.changed()

    def to(self, backend: Any, *, device: Any = None) -> None:
        """Move data and gradient to a backend; see `Layer.to`."""
        target = find_backend(backend, device=device)
        self.data = target.asarray(self.data)
        self.grad = None if self.grad is None else target.asarray(self.grad)

    def astype(self, dtype: Any) -> None:
        """Convert data and gradient to a dtype, unless they are integers; see `Layer.astype`."""
        xp = array_namespace(self.data)
        if "complex" in str(self.data.dtype) and "complex" not in dtype_name(dtype):
            msg = f"{self!r} is complex, and cannot become {dtype_name(dtype)}"
            raise InputError(msg)
        if not is_floating(self.data):
            return
        with on_device_of(self.data):
            self.data = xp.astype(self.data, resolve(xp, dtype))
            self.grad = None if self.grad is None else xp.astype(self.grad, self.data.dtype)

    def __repr__(self) -> str:
        kind = type(self).__name__
        return f"{kind}(shape={self.shape}, dtype={dtype_name(self.data.dtype)})"


class Buffer(Parameter):
    """An array that a layer keeps and no optimizer learns, such as a running mean.

    It is moved, converted and saved with its layer, as a parameter is. The layer's backward changes
    it, in place, with the gradients; a forward does not, so that gradient checks, the search for
    the first nan, exports and evaluations change nothing. (In PyTorch a forward in training mode
    updates running statistics even if no backward follows; here `update_statistics` does that.)

    Parameters
    ----------
    data : array
        Of any backend and dtype; integers stay integers when the layer is converted.

    Raises
    ------
    InputError
        `data` is no array, or has a mask, a unit or a dtype that xbp lacks; or `trainable` is set
        (use ``Parameter(data, trainable=False)`` for a constant that may be learned later).

    Examples
    --------
    A layer that counts its steps:

    >>> import numpy as np
    >>> from xbp import nn
    >>> class Counted(nn.Layer):
    ...     def __init__(self):
    ...         self.steps = nn.Buffer(np.asarray(0))
    ...
    ...     def forward(self, x, *, training=False, rng=None):
    ...         def backward(dy):
    ...             if training:
    ...                 self.steps.data += 1
    ...             return dy
    ...
    ...         return x, backward
    >>> layer = Counted()
    >>> y, backward = layer.forward(np.ones(2), training=True)
    >>> int(layer.steps.data), layer.parameters()
    (0, [])
    >>> dx = backward(np.ones(2))
    >>> layer.state_dict()
    {'steps': array(1)}
    """

    __slots__ = ()

    def __init__(self, data: Array) -> None:
        super().__init__(data, trainable=False)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "trainable" and value:
            msg = (
                f"{self!r} is kept, not learned, and cannot be trainable; make what is frozen only "
                "for now a Parameter(…, trainable=False)"
            )
            raise InputError(msg)
        super().__setattr__(name, value)


def note_changes(parameters: Iterable[Parameter]) -> None:
    """`Parameter.changed` of each."""
    for parameter in parameters:
        _set_version(parameter, parameter.version + 1)


def lent(
    parameter: Parameter | None,
) -> tuple[Array, Callable[[Array], None]] | tuple[None, None]:
    """`Parameter.lend` of an optional parameter; (None, None) without it."""
    return (None, None) if parameter is None else parameter.lend()


_set_grad: Callable[[Parameter, Array], None] = vars(Parameter)["grad"].__set__
_set_version: Callable[[Parameter, int], None] = vars(Parameter)["version"].__set__
# Bypasses the slower `__setattr__`, which is for assignments from outside.
