"""A check of how a hand-written forward runs its layers.

It finds two mistakes that hardly change an output: ``self.conv(x)`` is inference, without a
backward, so that the gradient is silently wrong; ``self.drop.forward(x)`` without `training` always
runs in inference mode.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any

from xbp.backend import Array, to_numpy
from xbp.errors import InputError
from xbp.nested import tree_leaves
from xbp.nn.layer import Layer
from xbp.random import RandomStream


def is_handwritten(layer: Layer) -> bool:
    """Whether a layer, or one in it, has sublayers and a forward that is not xbp's."""
    return any(
        not str(type(part).forward.__module__).startswith("xbp.") and any(part.children())
        for part in layer.tree()
    )


@contextmanager
def watched(layer: Layer) -> Iterator[None]:
    """A context that checks how forwards, in this thread, run the layers of `layer`.

    Without hand-written forwards nothing is checked.

    Raises
    ------
    InputError
        A forward calls one of its layers for inference, or does not hand `training` on to a layer
        that depends on it.
    """
    if not is_handwritten(layer):
        yield
        return
    owners = {
        (kind, method)
        for part in layer.tree()
        for kind in type(part).__mro__
        for method in ("forward", "__call__")
        if method in vars(kind) and issubclass(kind, Layer)
    }
    wrap: dict[str, Callable[..., Any]] = {"forward": _forward, "__call__": _call}
    _here.running = []
    with ExitStack() as stack, _lock:  # one at a time, as threads share the classes
        for kind, method in owners:
            original = vars(kind)[method]
            stack.callback(setattr, kind, method, original)
            setattr(kind, method, wrap[method](original))
        try:
            yield
        finally:
            _here.running = None


_here = threading.local()
"""`running`: the layers whose forward runs, with their `training`; None if unwatched."""

_lock = threading.RLock()


def _call(original: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(original)
    def call(self: Layer, *args: Any, **options: Any) -> Any:
        running = getattr(_here, "running", None)
        if running and running[-1][0] is not self:
            owner, own = running[-1][0], _name_in(running[-1][0], self)
            msg = (
                f"{type(owner).__name__} calls {own}(x) in its forward: that is inference, which "
                f"has no backward; take y, backward = {own}.forward(x, training=training, rng=rng) "
                "and chain it, or arrange its layers by nn.Composite; where no gradient is meant, "
                f"{own}.forward(x)[0]"
            )
            raise InputError(msg)
        return original(self, *args, **options)

    return call


def _forward(original: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(original)
    def forward(self: Layer, *args: Any, **options: Any) -> Any:
        running = getattr(_here, "running", None)
        if running is None:
            return original(self, *args, **options)
        inside = running and running[-1][0] is not self
        if inside and running[-1][1] and "training" not in options:
            _check_the_same(original, running[-1][0], self, args, options)
        running.append((self, options.get("training", False)))
        try:
            return original(self, *args, **options)
        finally:
            running.pop()

    return forward


def _check_the_same(
    original: Callable[..., Any], owner: Layer, layer: Layer, args: Any, options: Any
) -> None:
    """Refuse a missing `training` for a layer that depends on it."""
    running, _here.running = _here.running, None  # run again, unwatched
    try:
        without = original(layer, *args, **options)[0]
        with_it = original(layer, *args, **options | {"training": True, "rng": RandomStream(0)})[0]
    finally:
        _here.running = running
    if not _equal(without, with_it):
        own = _name_in(owner, layer)
        msg = (
            f"{type(owner).__name__} runs {own}.forward(x) without training, to which it makes a "
            f"difference; hand it on, {own}.forward(x, training=training, rng=rng), or say "
            "training=False where it is meant"
        )
        raise InputError(msg)


def _equal(one: Any, other: Any) -> bool:
    pairs: Iterator[tuple[Array, Array]] = zip(tree_leaves(one), tree_leaves(other), strict=True)
    return all(bool((to_numpy(a) == to_numpy(b)).all()) for a, b in pairs)


def _name_in(owner: Layer, layer: Layer) -> str:
    """``self.conv``, the layer's name in the owner's code, as far as known."""
    for name, child in owner.children():
        if child is layer:
            return f"self.{name}"
    return f"a {type(layer).__name__}"
