"""xbp as a side of a benchmark, on any of its backends."""

from __future__ import annotations

import gc
import importlib
import os
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import xbp
import xbp.accelerators
from xbp import nn, optim
from xbp.backend import Array
from xbp.benchmarks.networks import NETWORKS, make_model
from xbp.machine import facts_of
from xbp.training import LambdaCallback, Trainer, Training
from xbp.training.metrics import len_of
from xbp.training.scaling import computing

OPTIMIZERS = {"sgd": optim.SGD, "adam": optim.Adam}


class Side:
    def __init__(self, options: dict[str, Any]) -> None:
        self.backend = xbp.set_backend(options["backend"], device=options["device"])
        self.versions = {"xbp": xbp.__version__, "accelerators": accelerators(self.backend.name)}
        self.trainer, self.remarks = options["trainer"], list[str]()
        self.precision = "bfloat16" if options.get("bfloat16") else "float32"
        if self.backend.name == "cupy":
            self.cupy = importlib.import_module("cupy")
            self.versions |= {"cupy": self.cupy.__version__, **facts_of("cupy")}

    def array(self, host: NDArray[Any]) -> Array:
        return xbp.asarray(host)

    def take(self, x: Array, rows: Array) -> Array:
        return self.backend.xp.take(x, rows, axis=0)

    def wait(self, value: Any) -> None:
        """Wait for the device by reading `value`; all work issued before is done then.

        With CUDA, wait for all streams, as a graph may be replayed on a stream of its own.
        """
        if self.backend.name == "cupy":
            self.backend.device.synchronize()
        elif value is not None:
            xbp.to_numpy(value)

    def to_host(self, value: Array) -> NDArray[Any]:
        return xbp.to_numpy(value)

    def network(self, model: list[Any], optimizer: str, lr: float) -> Network:
        if self.trainer:
            return Trained(model, optimizer, lr, self.remarks, self.precision)
        return Network(model, optimizer, lr, self.precision)

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
            # "nt": the second operand is transposed in memory, as a weight in a forward.
            first = xbp.asarray(a) if form[0] == "n" else xbp.asarray(a.T.copy()).T
            second = xbp.asarray(b) if form[1] == "n" else xbp.asarray(b.T.copy()).T
            operands.append((first, second, xbp.asarray(np.zeros((m, n), np.float32))))

        def multiply() -> Array:
            for a, b, c in operands:
                xp.matmul(a, b, out=c)  # not in the standard, but avoids timing an allocation
            return c[:1, :1]

        return multiply

    def copy(self, size: int, parts: int) -> Callable[[], Array]:
        source = [xbp.asarray(np.ones(size // 4 // parts, np.float32)) for _ in range(parts)]
        target = [xbp.asarray(np.zeros(size // 4 // parts, np.float32)) for _ in range(parts)]
        executor = ThreadPoolExecutor(parts)

        def copy_part(part: int) -> None:
            target[part][...] = source[part]

        def copy() -> Array:
            if parts == 1:
                copy_part(0)
            else:
                list(executor.map(copy_part, range(parts)))
            return target[0][:1]

        return copy

    def launch(self, kernels: int, graph: bool) -> Callable[[], None]:
        if self.backend.name != "cupy":
            msg = "a kernel needs a GPU"
            raise RuntimeError(msg)
        cupy = self.cupy
        nothing = cupy.RawKernel('extern "C" __global__ void nothing() {}', "nothing")

        def launch() -> None:
            for _ in range(kernels):
                nothing((1,), (1,), ())

        launch()  # compiles and loads the kernel before a capture
        if not graph:
            return launch
        self.wait(None)
        stream = cupy.cuda.Stream(non_blocking=True)
        with stream:
            stream.begin_capture()
            launch()
            captured = stream.end_capture()
        return lambda: captured.launch(stream)

    def held(self) -> dict[str, int]:
        """Bytes held, after a garbage collection, as garbage is no leak."""
        gc.collect()
        if self.backend.name != "cupy":
            return {"process": resident()}
        pool, (free, total) = self.cupy.get_default_memory_pool(), self.cupy.cuda.Device().mem_info
        # The pool never releases memory by itself, so its size is the peak.
        return {"most": pool.total_bytes(), "now": pool.used_bytes(), "device": total - free}

    def grow(self, network: Network, x: Array, y: Array, batch: int, epochs: int) -> list[Any]:
        """Bytes held after each epoch of one call of `Trainer.fit`."""
        found: list[dict[str, int]] = []
        look = LambdaCallback(on_epoch_end=lambda trainer, epoch, record: found.append(self.held()))
        trainer = Trainer(
            network.model, network.loss, network.optimizer, rng=0, precision=self.precision
        )
        trainer.fit(x, y, epochs, batch, callbacks=[look], verbose=False)
        return found


def resident() -> int:
    """The resident memory of this process now, in bytes."""
    try:
        pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    except OSError:
        psutil = importlib.import_module("psutil")  # on systems without /proc
        return int(psutil.Process().memory_info().rss)
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def accelerators(backend: str) -> str:
    """The primitives that are accelerated here."""
    if not xbp.accelerators.enabled():
        return "off"
    names = [a.name for a in xbp.accelerators.registered() if a.backend == backend]
    return ", ".join(sorted(names)) or "none"


class Identity(nn.Layer):
    """y = x, to measure the cost of a call without computation."""

    def forward(
        self, x: Array, *, training: bool = False, rng: nn.backward.Rng = None
    ) -> tuple[Array, nn.Backward]:
        self.check_input(x)

        def backward(dy: Array) -> Array:
            return dy

        return x, backward


class Network:
    def __init__(
        self, model: list[Any], optimizer: str, lr: float, precision: str = "float32"
    ) -> None:
        self.spec, self.rule, self.lr = model, OPTIMIZERS[optimizer], lr
        self.precision = precision
        self.loss = NETWORKS[model[0]].loss()

    def load(self, weights: dict[str, Any]) -> None:
        self.model = make_model(*self.spec, rng=0)
        self.model.load_state_dict(weights)
        self.optimizer = self.rule(self.model.parameters(), lr=self.lr)

    def rate(self, lr: float) -> None:
        self.optimizer.lr = lr

    def step(self, x: Array, y: Array) -> Array:
        with computing(self.precision):  # the backward rounds as the forward did
            logits, backward = self.model.forward(x, training=True)
        value, gradient = self.loss(logits, y)
        nn.for_parameters(backward)(gradient)  # like PyTorch, without the gradient of the data
        self.optimizer.step()
        self.optimizer.zero_grad()
        return value

    def predict(self, x: Array) -> Array:
        return self.model(x)


class Trained(Network):
    """Whole epochs of a `Trainer`, with captured steps where it captures them.

    The shuffle, drawn on the host, and the record of an epoch are part of its time. Warnings, for
    instance of steps that cannot be captured, are kept in `remarks`.
    """

    def __init__(
        self,
        model: list[Any],
        optimizer: str,
        lr: float,
        remarks: list[str],
        precision: str = "float32",
    ) -> None:
        super().__init__(model, optimizer, lr, precision)
        self.remarks = remarks

    def load(self, weights: dict[str, Any]) -> None:
        if not hasattr(self, "trainer"):
            super().load(weights)
            self.initial = self.optimizer.state_dict()
            self.trainer = Trainer(
                self.model, self.loss, self.optimizer, rng=0, precision=self.precision
            )
        self.model.load_state_dict(weights)
        self.optimizer.load_state_dict(self.initial)
        self.trainer.epochs_done = 0

    def first(self, x: Array, y: Array, batch: int, epochs: int) -> list[float]:
        """The losses of short epochs, to compare the sides."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            history = self.trainer.fit(x, y, epochs, batch, verbose=False)
        self.remarks += [str(warning.message) for warning in caught]
        return [float(loss) for loss in history["loss"]]

    def fit(self, x: Array, y: Array, batch: int, steps: int) -> int:
        """Whole epochs, until there were at least `steps` steps; returns their number."""
        in_epoch = -(-len_of(x) // batch)
        epochs = -(-steps // in_epoch)
        self.trainer.fit(x, y, epochs, batch, verbose=False)
        return epochs * in_epoch

    def learn(
        self,
        x: Array,
        y: Array,
        batch: int,
        epochs: int,
        rates: list[float],
        seed: int,
        is_done: Callable[[int, Any], bool],
    ) -> None:
        """Epochs with their shuffles and rates, until `is_done` is true after one."""

        def look(trainer: Training, epoch: int, record: Any) -> None:
            if is_done(epoch, trainer.current_loss):
                trainer.stop("done")

        self.trainer.seed = seed
        self.optimizer.lr = lambda step: rates[min(step, len(rates) - 1)]
        callbacks = [LambdaCallback(on_epoch_end=look)]
        self.trainer.fit(x, y, epochs, batch, callbacks=callbacks, verbose=False)
