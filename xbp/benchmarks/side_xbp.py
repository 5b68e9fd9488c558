"""xbp as a side of a benchmark, on any of its backends (on CuPy not run yet)."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

import xbp
import xbp.accelerators
from xbp import nn, optim
from xbp.backend import Array
from xbp.benchmarks.workloads import make_model

OPTIMIZERS = {"sgd": optim.SGD, "adam": optim.Adam}


class Side:
    def __init__(self, options: dict[str, Any]) -> None:
        self.backend = xbp.set_backend(options["backend"], device=options["device"])
        self.versions = {"xbp": xbp.__version__, "accelerators": accelerators(self.backend.name)}
        if self.backend.name == "cupy":
            cupy = importlib.import_module("cupy")
            runtime = cupy.cuda.runtime
            device = runtime.getDeviceProperties(self.backend.device.id)["name"].decode()
            self.versions |= {"cupy": cupy.__version__, "device": device}
            self.versions |= {"CUDA driver": str(runtime.driverGetVersion())}

    def array(self, host: NDArray[Any]) -> Array:
        return xbp.asarray(host)

    def take(self, x: Array, rows: Array) -> Array:
        return self.backend.xp.take(x, rows, axis=0)

    def wait(self, value: Any) -> None:
        """Read `value`: a device computes in order, so all that was asked before has been done."""
        if value is not None:
            xbp.to_numpy(value)

    def to_host(self, value: Array) -> NDArray[Any]:
        return xbp.to_numpy(value)

    def network(self, model: list[Any], optimizer: str, lr: float) -> Network:
        return Network(model, optimizer, lr)

    def identity(self, x: Array) -> Callable[[], None]:
        layer = Identity()

        def call() -> None:
            layer.forward(x, training=True)

        return call

    def products(self, shapes: list[list[Any]]) -> Callable[[], Array]:
        xp, rng = self.backend.xp, np.random.default_rng(0)
        operands = []
        for m, k, n, form in shapes:
            a, b = rng.random((m, k), np.float32), rng.random((k, n), np.float32)
            # "nt": the second operand lies transposed in memory, as a weight does in a forward.
            first = xbp.asarray(a) if form[0] == "n" else xbp.asarray(a.T.copy()).T
            second = xbp.asarray(b) if form[1] == "n" else xbp.asarray(b.T.copy()).T
            operands.append((first, second, xbp.asarray(np.zeros((m, n), np.float32))))

        def multiply() -> Array:
            for a, b, c in operands:
                xp.matmul(a, b, out=c)  # of no standard, but fresh memory would be timed too
            return c[:1, :1]

        return multiply

    def copy(self, size: int, parts: int) -> Callable[[], Array]:
        source = [xbp.asarray(np.ones(size // 4 // parts, np.float32)) for _ in range(parts)]
        target = [xbp.asarray(np.zeros(size // 4 // parts, np.float32)) for _ in range(parts)]
        pool = ThreadPoolExecutor(parts)

        def copy_part(part: int) -> None:
            target[part][...] = source[part]

        def copy() -> Array:
            if parts == 1:
                copy_part(0)
            else:
                list(pool.map(copy_part, range(parts)))
            return target[0][:1]

        return copy


def accelerators(backend: str) -> str:
    """Which primitives are accelerated here."""
    if not xbp.accelerators.enabled():
        return "off"
    names = [a.name for a in xbp.accelerators.registered() if a.backend == backend]
    return ", ".join(sorted(names)) or "none"


class Identity(nn.Layer):
    """y = x: what a call costs in which nothing is computed."""

    def forward(
        self, x: Array, *, training: bool = False, rng: nn.layer.Rng = None
    ) -> tuple[Array, nn.layer.Backward]:
        self.namespace(x)

        def backward(dy: Array) -> Array:
            return dy

        return x, backward


class Network:
    def __init__(self, model: list[Any], optimizer: str, lr: float) -> None:
        self.spec, self.rule, self.lr = model, OPTIMIZERS[optimizer], lr
        self.loss = nn.CrossEntropyLoss()

    def load(self, weights: dict[str, Any]) -> None:
        self.model = make_model(*self.spec, rng=0)
        self.model.load_state_dict(weights)
        self.optimizer = self.rule(self.model.parameters(), lr=self.lr)

    def rate(self, lr: float) -> None:
        self.optimizer.lr = lr

    def step(self, x: Array, y: Array) -> Array:
        logits, backward = self.model.forward(x, training=True)
        value, gradient = self.loss(logits, y)
        nn.for_parameters(backward)(gradient)  # as PyTorch, which has no gradient of the data
        self.optimizer.step()
        self.optimizer.zero_grad()
        return value

    def predict(self, x: Array) -> Array:
        return self.model(x)
