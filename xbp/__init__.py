"""xbp: backpropagation written once, on the Python Array API, for numpy and CuPy alike.

What the names stand for is imported when it is first asked for (PEP 562).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from xbp import registry
from xbp._version import __version__

if TYPE_CHECKING:
    from xbp import (
        data,
        datasets,
        errors,
        initializers,
        models,
        nn,
        optim,
        parallel,
        random,
        training,
    )
    from xbp.backend import (
        Backend,
        asarray,
        available_backends,
        get_backend,
        set_backend,
        to_numpy,
        use_backend,
    )
    from xbp.primitives.reduced import precision
    from xbp.training import History, Trainer

__all__ = [
    "__version__",
    "Backend",
    "History",
    "Trainer",
    "asarray",
    "available_backends",
    "data",
    "datasets",
    "errors",
    "get_backend",
    "initializers",
    "models",
    "nn",
    "optim",
    "parallel",
    "precision",
    "random",
    "set_backend",
    "to_numpy",
    "training",
    "use_backend",
]

_ROOMS = {
    *(
        "accelerators",
        "arguments",
        "backend",
        "data",
        "datasets",
        "errors",
        "initializers",
        "models",
    ),
    *("nn", "optim", "parallel", "paths", "primitives", "random", "training"),
}
registry.offer("numpy", "xbp.accelerators.cpu")
registry.offer("xbp.backend.recorded", "xbp.accelerators.cpu.recorded")
registry.offer("cupy", "xbp.accelerators.cuda")

_HOMES = {"History": "training", "Trainer": "training", "precision": "primitives.reduced"}
"""The rooms of public names; of those in neither table, `backend`."""


if not TYPE_CHECKING:  # a type checker would take every name for one of xbp's

    def __getattr__(name: str) -> Any:
        if name in _ROOMS:
            found = import_module(f"xbp.{name}")
        elif name in __all__:
            found = getattr(import_module(f"xbp.{_HOMES.get(name, 'backend')}"), name)
        else:
            msg = f"module 'xbp' has no attribute {name!r}"
            raise AttributeError(msg)
        globals()[name] = found
        return found

    def __dir__() -> list[str]:
        return sorted({*__all__, *_ROOMS})
