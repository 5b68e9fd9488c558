"""Faster versions of primitives, each for one array library, each checked against its reference.

An accelerator has the name and the arguments of its primitive, and may decline a call by returning
``NotImplemented``; the reference then computes it. ``XBP_ACCELERATE=0`` in the environment, or
`disabled`, switches all of them off; the name of a level in `cpu.native.LEVELS` selects the kernels
compiled for it.

For numpy they are compiled C (`cpu`), built when xbp is installed if there is a compiler; for CuPy
they are CUDA kernels (`cuda`), compiled at first use. `xbp.registry` finds them.
"""

from __future__ import annotations

from typing import NamedTuple

from xbp.registry import Function, allowed, disabled, enabled, find, offered, register

__all__ = ["Accelerator", "disabled", "enabled", "find", "register", "registered", "status"]


class Accelerator(NamedTuple):
    """`function`, which replaces the reference of primitive `name` for arrays of `backend`."""

    name: str
    backend: str
    function: Function


def registered() -> list[Accelerator]:
    """All accelerators available on this machine."""
    from xbp.backend import find_backend, why_unavailable

    backends = [find_backend(name) for name in ("numpy", "cupy") if why_unavailable(name) is None]
    return [
        Accelerator(name, backend.name, function)
        for backend in backends
        for name, function in offered(type(backend.asarray(0.0))).items()
    ]


def status() -> str:
    """A description of the accelerators in use, for `xbp info`."""
    if not allowed():
        return "switched off (XBP_ACCELERATE=0)"
    if not enabled():
        return "switched off (accelerators.disabled())"
    from xbp.accelerators.cpu import native

    if native.library() is None:
        return f"none: {native.status()}"
    mode = ", reproducible" if native.reproducible() else ""
    return f"numpy: compiled kernels, {native.status()}, {native.threads()} threads{mode}"
