"""JAX as a side of a benchmark: the whole training step under one jit."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Side:
    def __init__(self, options: dict[str, Any]) -> None:
        import jax

        self.jax = jax
        wanted = "gpu" if options["backend"] == "cupy" else "cpu"
        if jax.default_backend() != wanted:
            msg = f"JAX runs on the {jax.default_backend()} here, and not on the {wanted}"
            msg += "; pip install 'jax[cuda13]' (or 'jax[cuda12]')" * (wanted == "gpu")
            raise RuntimeError(msg)
        index = str(options["device"] or 0).rpartition(":")[2] if wanted == "gpu" else "0"
        self.device = jax.devices()[int(index)]
        jax.config.update(
            "jax_default_matmul_precision", "tensorfloat32" if options["tf32"] else "float32"
        )
        self.versions = {"jax": jax.__version__, "device": self.device.device_kind}

    def array(self, host: NDArray[Any]) -> Any:
        small = host.astype(np.int32) if host.dtype == np.int64 else host  # JAX has 32 bits
        return self.jax.device_put(small, self.device)

    def take(self, x: Any, rows: Any) -> Any:
        return x[rows]

    def wait(self, value: Any) -> None:
        self.jax.block_until_ready(value)

    def to_host(self, value: Any) -> NDArray[Any]:
        return np.asarray(value)

    def network(self, model: list[Any], optimizer: str, lr: float) -> Network:
        return Network(self.jax, model, optimizer, lr)

    def held(self) -> dict[str, int]:
        stats = self.device.memory_stats()
        return {"most": stats["peak_bytes_in_use"], "now": stats["bytes_in_use"]}


class Network:
    def __init__(self, jax: Any, model: list[Any], optimizer: str, lr: float) -> None:
        self.jax, self.lr = jax, lr
        forwards = runpy.run_path(str(Path(__file__).with_name("models_jax.py")))["FORWARDS"]
        forward = partial(forwards[model[0]], sizes=model[1:])
        self.predictor = jax.jit(forward)
        one = partial(step, jax, forward, UPDATES[optimizer])
        self.stepper = jax.jit(one, donate_argnums=0)

        def at(state: Any, x: Any, y: Any, rows: Any, lr: Any) -> Any:
            return one(state, x[rows], y[rows], lr)

        self.stepper_at = jax.jit(at, donate_argnums=0)

    def load(self, weights: dict[str, NDArray[np.float32]]) -> None:
        jnp = self.jax.numpy
        parameters = {
            name: jnp.array(value)
            for name, value in weights.items()
            if "running" not in name
            and "tracked" not in name  # of batch norm, not used in training
        }
        zeros = [{name: jnp.zeros_like(p) for name, p in parameters.items()} for _ in range(2)]
        self.state = (parameters, *zeros, jnp.zeros((), jnp.int32))

    def rate(self, lr: float) -> None:
        self.lr = lr

    def step(self, x: Any, y: Any) -> Any:
        self.state, value = self.stepper(self.state, x, y, self.lr)
        return value

    def feed(self, x: Any, y: Any) -> None:
        self.set = x, y

    def step_at(self, rows: Any) -> Any:
        self.state, value = self.stepper_at(self.state, *self.set, rows, self.lr)
        return value

    def predict(self, x: Any) -> Any:
        return self.predictor(self.state[0], x)


def step(jax: Any, forward: Any, update: Any, state: Any, x: Any, y: Any, lr: Any) -> Any:
    def loss(parameters: Any) -> Any:
        log_p = jax.nn.log_softmax(forward(parameters, x))
        return -jax.numpy.mean(jax.numpy.take_along_axis(log_p, y.reshape(-1, 1), axis=1))

    parameters, m, v, t = state
    value, gradients = jax.value_and_grad(loss)(parameters)
    new: tuple[dict[str, Any], ...] = ({}, {}, {})
    for name, g in gradients.items():
        changed = update(jax.numpy, parameters[name], g, m[name], v[name], t + 1, lr)
        for target, array in zip(new, changed, strict=True):
            target[name] = array
    return (*new, t + 1), value


def sgd(jnp: Any, p: Any, g: Any, m: Any, v: Any, t: Any, lr: Any) -> Any:
    return p - lr * g, m, v


def adam(jnp: Any, p: Any, g: Any, m: Any, v: Any, t: Any, lr: Any) -> Any:
    m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
    scale = jnp.sqrt(v / (1 - 0.999**t)) + 1e-8
    return p - lr * m / (1 - 0.9**t) / scale, m, v


UPDATES: dict[str, Callable[..., Any]] = {"sgd": sgd, "adam": adam}
