"""xbp's layers as PyTorch modules, and PyTorch's modules as layers of xbp.

    module = xbp.interop.torch.as_module(layer)     # a torch.nn.Module, with gradients
    layer = xbp.interop.torch.as_layer(module)      # an nn.Layer, with its own backward

In a module, the layer's own backward computes the gradients that torch's autograd asks for. In a
layer, torch's autograd computes the gradients that a backward of xbp returns. PyTorch is imported
when this module is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from xbp.backend import (
    Array,
    array_namespace,
    asarray,
    backend_of,
    is_floating,
    library_of,
    to_numpy,
)
from xbp.errors import BackendError, InputError
from xbp.nested import tree_leaves, tree_map
from xbp.nn.backward import Backward, Rng, TwoPartBackward, run_forward
from xbp.nn.layer import Layer
from xbp.nn.parameter import Buffer, Parameter
from xbp.random import RandomStream, as_stream

try:
    import torch
    import torch.utils.dlpack
    from torch.autograd.function import once_differentiable
except ImportError as error:
    raise BackendError(f"xbp.interop.torch needs PyTorch ({error}); pip install torch") from None

# --- a layer as a module -------------------------------------------------------------------------


class LayerModule(torch.nn.Module):
    """An xbp layer as a `torch.nn.Module`; `as_module` makes it.

    Its parameters and buffers are those of the layer: they share memory, so that an optimizer of
    either side changes both.

    Attributes
    ----------
    layer : Layer
        On the backend "torch".
    """

    def __init__(self, layer: Layer, rng: Any = None) -> None:
        super().__init__()
        self.layer = layer
        self.stream = as_stream(rng)
        self._shared: list[tuple[Parameter, torch.Tensor]] = []
        for name, own in layer.named_parameters():
            shared = torch.nn.Parameter(own.data)
            _place(self, name).register_parameter(name.rpartition(".")[2], shared)
            self._shared.append((own, shared))
        self._buffers_shared: list[tuple[Buffer, torch.nn.Module, str]] = []
        for name, buffer in layer.named_buffers():
            place, last = _place(self, name), name.rpartition(".")[2]
            place.register_buffer(last, buffer.data)
            self._buffers_shared.append((buffer, place, last))

    def forward(self, *inputs: torch.Tensor) -> Any:
        """The layer's output: in training mode of the module, its forward in training."""
        self._follow()
        tensors = [shared for _, shared in self._shared]
        return _Run.apply(self, len(inputs), *inputs, *tensors)  # type: ignore[no-untyped-call]

    def _follow(self) -> None:
        """Take over what `to`, `float` or `load_state_dict` have put in place of an array."""
        for buffer, place, name in self._buffers_shared:
            if buffer.data is not getattr(place, name):
                buffer.data = getattr(place, name)
        moved = {
            id(old): new
            for (_, old), new in zip(self._shared, self._parameters_now(), strict=True)
            if old is not new
        }
        self._shared = [(own, moved.get(id(old), old)) for own, old in self._shared]
        for parameter, tensor in self._shared:
            data = parameter.data
            if data.data_ptr() != tensor.data_ptr() or data.dtype != tensor.dtype:
                parameter.data = tensor.detach()

    def _parameters_now(self) -> list[torch.Tensor]:
        found = dict(self.named_parameters())
        return [found[name] for name, _ in self.layer.named_parameters()]

    def extra_repr(self) -> str:
        return repr(self.layer)


class _Run(torch.autograd.Function):
    """A layer's forward and backward, for torch's autograd."""

    @staticmethod
    def forward(ctx: Any, module: LayerModule, count: int, *tensors: torch.Tensor) -> Any:
        inputs = [tensor.detach() for tensor in tensors[:count]]
        x = inputs[0] if count == 1 else tuple(inputs)
        training, rng = module.training, module.stream
        y, backward = run_forward(module.layer, x, training=training, rng=rng)
        ctx.backward_of_layer, ctx.module, ctx.count = backward, module, count
        leaves = tree_leaves(y)
        # A result that is an input would make torch think that it was changed in place.
        outputs = [
            leaf.view_as(leaf) if any(leaf is it for it in inputs) else leaf for leaf in leaves
        ]
        ctx.shape = tree_map(lambda leaf: None, y)
        ctx.like = [(leaf.shape, leaf.dtype, leaf.device) for leaf in outputs]
        return outputs[0] if ctx.shape is None else tuple(outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor | None) -> Any:
        parameters = [own for own, _ in ctx.module._shared]
        parts = iter(
            torch.zeros(shape, dtype=dtype, device=device) if given is None else given
            for given, (shape, dtype, device) in zip(gradients, ctx.like, strict=True)
        )
        dy = tree_map(lambda _: next(parts), ctx.shape)
        kept = [own.grad for own in parameters]
        try:
            for own in parameters:
                own.zero_grad()
            dx = tree_leaves(ctx.backward_of_layer(dy))
            found = [own.grad for own in parameters]
        finally:
            for own, grad in zip(parameters, kept, strict=True):
                own.grad = grad
        return (None, None, *dx, *found)


def as_module(layer: Layer, *, rng: Any = None) -> LayerModule:
    """A layer, or a whole model, as a `torch.nn.Module`.

    The module's parameters are those of the layer, under the same names, and share its memory.
    `module.train()` and `module.eval()` choose between training and inference. Gradients are those
    of the layer's own backward. They can be differentiated once: second derivatives, such as in a
    gradient penalty, are an error of torch.

    Parameters
    ----------
    layer : Layer
        It is moved to the backend "torch", in place, if it is on another one.
    rng : int, numpy.random.Generator or None
        Seed of random masks, for layers that draw in training, such as Dropout.

    Returns
    -------
    torch.nn.Module
        Called with one tensor, or with several for a layer that takes a tuple.

    Examples
    --------
    >>> import torch
    >>> from xbp import nn
    >>> from xbp.interop.torch import as_module
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), as_module(nn.GELU()))
    >>> model(torch.zeros(2, 4)).shape
    torch.Size([2, 3])
    """
    if not isinstance(layer, Layer):
        msg = f"as_module takes a layer of xbp, such as nn.Linear(3, 2); got {_kind(layer)}"
        raise InputError(msg)
    place = layer.backend()
    if place is not None and place.name != "torch":
        layer.to("torch")
    return LayerModule(layer, rng)


def _place(root: torch.nn.Module, name: str) -> torch.nn.Module:
    """The module that holds a dotted name, made where it is missing: names have no dots there."""
    place = root
    for part in name.split(".")[:-1]:
        if not hasattr(place, part):
            place.add_module(part, torch.nn.Module())
        place = getattr(place, part)
    return place


# --- a module as a layer -------------------------------------------------------------------------


class ModuleLayer(Layer):
    """A PyTorch module as a layer of xbp; `as_layer` makes it."""

    def __init__(self, module: torch.nn.Module) -> None:
        self._held = _Held(module)
        for name, tensor in module.named_parameters():
            self._keep(name, Parameter(_copied(tensor), trainable=tensor.requires_grad))
        for name, kept in module.named_buffers():
            self._keep(name, Buffer(_copied(kept)))

    @property
    def module(self) -> torch.nn.Module:
        """Its structure alone counts: parameters and buffers are the layer's own."""
        return self._held.module

    def _keep(self, name: str, own: Parameter) -> None:
        """An attribute, or an entry of nested dicts, by a dotted name."""
        first, *rest = name.split(".")
        if hasattr(type(self), first):
            msg = f"this module has a part called {first!r}, a name that every layer has; rename it"
            raise InputError(msg)
        if not rest:
            setattr(self, first, own)
            return
        place = vars(self).setdefault(first, {})
        for part in rest[:-1]:
            place = place.setdefault(part, {})
        place[rest[-1]] = own

    def forward(
        self, x: Array, *, training: bool = False, rng: Rng = None
    ) -> tuple[Array, Backward]:
        tensors, named, buffers = self._tensors(x, wanted=True)
        with torch.enable_grad(), _mode(self.module, training, rng):
            result = self._call(tensors, {**named, **buffers})
        y = _given(result.detach(), x)
        moved = buffers if training else {}
        own = dict(self._all_names(""))
        takes = [_taker(own[name]) for name in named]
        learning = [tensor for tensor in tensors if tensor.requires_grad]
        learning += [tensor for tensor in named.values() if tensor.requires_grad]
        pending = [moved]

        def gradients(dy: Array, wants_dx: bool) -> tuple[Any, ...]:
            self.check_gradient(array_namespace(y), dy, y.shape)
            found = iter(
                torch.autograd.grad(
                    result,
                    learning,
                    _tensor(dy).to(result.dtype),
                    retain_graph=True,
                    allow_unused=True,
                )
                if learning and result.requires_grad
                else [None] * len(learning)
            )
            dx = [_gradient(tensor, found, x) for tensor in tensors]
            grads = [_gradient(tensor, found, x) for tensor in named.values()]
            while pending:
                self._commit(pending.pop())
            return (dx[0] if not isinstance(x, tuple) else tuple(dx), *grads)

        return y, TwoPartBackward(gradients, *takes)

    def __call__(self, x: Array) -> Array:
        """Inference, without a graph."""
        tensors, named, buffers = self._tensors(x, wanted=False)
        with torch.no_grad(), _mode(self.module, False, None):
            return _given(self._call(tensors, {**named, **buffers}), x)

    def _call(self, tensors: list[torch.Tensor], arrays: dict[str, torch.Tensor]) -> torch.Tensor:
        """The module's output with these parameters and buffers in place of its own."""
        result = torch.func.functional_call(self.module, arrays, tuple(tensors))
        if not isinstance(result, torch.Tensor):
            msg = f"{self} returned {_kind(result)}; as_layer takes modules with one output tensor"
            raise InputError(msg)
        return result

    def _tensors(self, x: Any, *, wanted: bool) -> Any:
        """The inputs, the parameters and copies of the buffers, as tensors."""
        inputs = [_tensor(part) for part in tree_leaves(x)]
        for part in tree_leaves(x):
            if is_floating(part):
                self.check_input(part)
        inputs = [_leaf(tensor, wanted) for tensor in inputs]
        named, buffers = {}, {}
        for name, own in self._all_names(""):
            if isinstance(own, Buffer):
                buffers[name] = _tensor(own.data).clone()
            else:
                named[name] = _leaf(_tensor(own.data), wanted and own.trainable)
        return inputs, named, buffers

    def _commit(self, moved: dict[str, torch.Tensor]) -> None:
        """Running statistics as the forward has left them, with the gradients."""
        own = dict(self._all_names(""))
        for name, tensor in moved.items():
            buffer = own[name]
            buffer.data[...] = _given(tensor, buffer.data)

    def __repr__(self) -> str:
        return f"as_layer({type(self.module).__name__})"


class _Held:
    """A module, out of sight of the search for parts: the layer's arrays are not in it."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.module = module

    def __deepcopy__(self, memo: Any) -> _Held:
        return self  # only its structure counts, which nobody changes


def as_layer(module: torch.nn.Module) -> ModuleLayer:
    """A PyTorch module as a layer of xbp, with gradients by torch's autograd.

    Parameters and buffers become the layer's own, on the current backend, under the module's names;
    the module itself stays as it is. Inputs are arrays of numpy, CuPy or PyTorch, and share memory
    with torch's tensors.

    A forward in training changes no buffer, such as running statistics; its backward puts in place
    what the module has made of them, as everywhere in xbp. Random numbers are torch's, seeded from
    the forward's `rng`.

    Parameters
    ----------
    module : torch.nn.Module
        With one output tensor. It must not keep anything but its buffers from call to call.

    Returns
    -------
    Layer

    Raises
    ------
    InputError
        `module` is no module; in a call, for input of another dtype than the parameters.
    BackendError
        In a call, for arrays of a library that shares no memory with PyTorch.

    Examples
    --------
    >>> import numpy as np
    >>> import torch
    >>> from xbp import nn
    >>> from xbp.interop.torch import as_layer
    >>> from xbp.testing import check_gradients
    >>> layer = nn.Sequential(as_layer(torch.nn.Linear(4, 3)), nn.Tanh())
    >>> check_gradients(layer, np.ones((2, 4)))
    """
    if not isinstance(module, torch.nn.Module):
        msg = f"as_layer takes a torch.nn.Module; got {_kind(module)}"
        raise InputError(msg)
    return ModuleLayer(module)


def _kind(value: Any) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__


def _copied(tensor: torch.Tensor) -> Array:
    """A copy of a tensor on the current backend."""
    return asarray(tensor.detach().clone())


def _tensor(array: Array) -> torch.Tensor:
    """An array as a tensor of the same memory; a read-only or reversed one is copied."""
    if isinstance(array, torch.Tensor):
        return array.detach()
    library = library_of(array)
    if library is not None and library.name == "numpy":
        host = np.asarray(array)
        usable = host.flags.writeable and min(host.strides, default=0) >= 0
        return torch.from_numpy(host if usable else host.copy())
    if library is not None and library.name == "cupy":
        return torch.utils.dlpack.from_dlpack(array)
    name = "nothing" if library is None else library.name
    msg = (
        f"a PyTorch module runs on arrays of numpy, CuPy and PyTorch; got {_kind(array)} of {name}"
    )
    raise BackendError(msg)


def _given(tensor: torch.Tensor, like: Any) -> Array:
    """A tensor as an array of the library of `like`, of the same memory."""
    first = tree_leaves(like)[0]
    if isinstance(first, torch.Tensor):
        return tensor.detach()
    xp = array_namespace(first)
    if backend_of(first).name == "numpy":
        return to_numpy(tensor)
    return xp.from_dlpack(tensor.detach())


def _leaf(tensor: torch.Tensor, wanted: bool) -> torch.Tensor:
    """A tensor by which torch differentiates, if it holds floating-point numbers."""
    tensor = tensor.detach()
    return tensor.requires_grad_() if wanted and tensor.is_floating_point() else tensor


def _gradient(tensor: torch.Tensor, found: Iterator[Any], like: Any) -> Array | None:
    """The next gradient for a tensor that has one, zeros if the output does not depend on it."""
    if not tensor.requires_grad:
        return None
    gradient = next(found)
    return _given(torch.zeros_like(tensor) if gradient is None else gradient, like)


def _taker(parameter: Parameter) -> Callable[[Array | None], None]:
    """Receives a gradient; refuses it if the parameter has changed since the forward."""
    _, add_grad = parameter.lend()

    def take(gradient: Array | None) -> None:
        if gradient is not None:
            add_grad(gradient)

    return take


def _seed(stream: RandomStream) -> int:
    """A seed for the next draw of a stream, known on the host."""
    place = [*stream.key, stream.step, stream.draws]
    stream.draws += 1
    return int(np.random.SeedSequence(place).generate_state(1, np.uint64)[0])


@contextmanager
def _mode(module: torch.nn.Module, training: bool, rng: Rng) -> Iterator[None]:
    """The module in training or evaluation, with torch's random numbers from `rng`."""
    modes = {inner: inner.training for inner in module.modules()}
    stream: RandomStream | None = as_stream(rng) if training else None
    try:
        module.train(training)
        if stream is None:
            yield
        else:
            with torch.random.fork_rng():
                torch.manual_seed(_seed(stream))
                yield
    finally:
        for inner, mode in modes.items():
            inner.training = mode


__all__ = ["LayerModule", "ModuleLayer", "as_layer", "as_module"]
