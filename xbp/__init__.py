"""xbp: backpropagation written once, on the Python Array API, for numpy and CuPy alike."""

from xbp import datasets, errors, initializers, models, nn, optim, random, training
from xbp._version import __version__
from xbp.backend import (
    Backend,
    asarray,
    available_backends,
    get_backend,
    set_backend,
    to_numpy,
    use_backend,
)
from xbp.training import History, Trainer

__all__ = [
    "__version__",
    "Backend",
    "History",
    "Trainer",
    "asarray",
    "available_backends",
    "datasets",
    "errors",
    "get_backend",
    "initializers",
    "models",
    "nn",
    "optim",
    "random",
    "set_backend",
    "to_numpy",
    "training",
    "use_backend",
]
