"""One side of a benchmark, in a process of its own: reads commands, carries them out, answers.

    python -P worker.py side_torch.py '{"threads": 2, …}'

It is started by its path and imports nothing of xbp, so that a peer's process holds the peer, numpy
and this file, no more. Commands and answers are lines of JSON. Between them it sleeps in a read;
what threads its library has go to sleep by themselves within the pause that the harness makes.

A side file defines a class ``Side`` of a dictionary of options, with

    versions                             what runs: a dictionary of strings
    array(host)                          its own array, on its device, of a numpy array
    take(x, rows)                        rows of an array of its own
    wait(value)                          returns when `value` has been computed
    to_host(value)                       as a numpy array
    network(model, optimizer, lr)        load(weights), step(x, y) -> loss, predict(x) -> logits,
                                         rate(lr): a model such as ["mlp", 784, 4096, 10]
    identity(x)                          a call of a layer that does nothing, ready to be made
    products(shapes), copy(size, parts)  the same for matrix products, and for copying `size` bytes

of which it may leave out what it cannot do.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Worker:
    def __init__(self, side: Any) -> None:
        self.side = side

    def versions(self, job: dict[str, Any]) -> dict[str, str]:
        return {"numpy": np.__version__, **self.side.versions}

    # --- what can be timed: each makes self.step, and returns values that all sides must share ---

    def train(self, job: dict[str, Any]) -> list[float]:
        """Training steps on the batches of a set, in turn; returns the losses of the first."""
        batches = self._batches(job)
        self.network = self.side.network(job["model"], job["optimizer"], job["lr"])
        self.network.load(_weights(job))

        def step(i: int) -> Any:
            return self.network.step(*batches[i % len(batches)])

        self.step: Callable[[int], Any] = step
        return [float(self.side.to_host(step(i))) for i in range(job["guard"])]

    def infer(self, job: dict[str, Any]) -> list[float]:
        """Logits of the same batches; returns the first ones' cross-entropy."""
        batches = self._batches(job)
        network = self.side.network(job["model"], job["optimizer"], job["lr"])
        network.load(_weights(job))

        def step(i: int) -> Any:
            return network.predict(batches[i % len(batches)][0])

        self.step = step
        return [
            _cross_entropy(self.side.to_host(step(i)), self.side.to_host(batches[i][1]))
            for i in range(min(job["guard"], len(batches)))
        ]

    def call(self, job: dict[str, Any]) -> list[float]:
        call = self.side.identity(self.side.array(np.ones((1, 8), np.float32)))
        self.step = lambda i: call()
        return []

    def products(self, job: dict[str, Any]) -> list[float]:
        multiply = self.side.products(job["shapes"])
        self.step = lambda i: multiply()
        return []

    def copy(self, job: dict[str, Any]) -> list[float]:
        copy = self.side.copy(job["size"], job["parts"])
        self.step = lambda i: copy()
        return []

    # --- measuring ---

    def run(self, job: dict[str, Any]) -> float:
        """Seconds that `steps` steps take, after one that wakes threads and fills caches."""
        self.side.wait(self.step(0))
        start = time.perf_counter()
        for i in range(job["steps"]):
            value = self.step(i)
        self.side.wait(value)
        return time.perf_counter() - start

    def learn(self, job: dict[str, Any]) -> list[dict[str, float]]:
        """Train until `target` is reached; seconds so far and test accuracy after each epoch.

        The network is the one that `train` made and warmed up, with new weights.
        """
        side, network, batch = self.side, self.network, job["batch"]
        x, y = self._set(job, "train")
        x_test, labels = self._set(job, "test")
        labels, n, n_test = side.to_host(labels), x.shape[0], x_test.shape[0]
        orders = [side.array(order) for order in np.load(job["orders"])]
        rates, epochs = iter(job["rates"]), []
        network.load(_weights(job))
        start = time.perf_counter()
        for order in orders:
            for first in range(0, n, batch):
                rows = order[first : min(first + batch, n)]
                network.rate(next(rates))
                network.step(side.take(x, rows), side.take(y, rows))
            correct = 0
            for first in range(0, n_test, 1000):
                part = slice(first, min(first + 1000, n_test))
                logits = side.to_host(network.predict(x_test[part, ...]))
                correct += int((logits.argmax(axis=1) == labels[part]).sum())
            epochs.append(
                {"seconds": time.perf_counter() - start, "accuracy": correct / len(labels)}
            )
            if epochs[-1]["accuracy"] >= job["target"]:
                break
        return epochs

    def peak(self, job: dict[str, Any]) -> int:
        """The most memory, in bytes, that this process has had in RAM."""
        status = Path("/proc/self/status")
        if status.exists():  # getrusage would also count what the parent had when it forked
            for line in status.read_text(encoding="ascii").splitlines():
                if line.startswith("VmHWM"):
                    return 1024 * int(line.split()[1])
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

    # --- data ---

    def _batches(self, job: dict[str, Any]) -> list[tuple[Any, Any]]:
        x, y = self._set(job, "train")
        size = job["batch"]
        starts = range(0, x.shape[0] - size + 1, size)
        return [(x[s : s + size, ...], y[s : s + size]) for s in starts]

    def _set(self, job: dict[str, Any], part: str) -> tuple[Any, Any]:
        folder, limit = Path(job["data"]), job["images"]
        x, y = (np.load(folder / f"{name}_{part}.npy")[:limit] for name in "xy")
        return self.side.array(x.reshape(-1, *job["shape"])), self.side.array(y)


def _weights(job: dict[str, Any]) -> dict[str, NDArray[np.float32]]:
    with np.load(job["weights"]) as file:
        return dict(file)


def _cross_entropy(logits: NDArray[Any], labels: NDArray[Any]) -> float:
    z = logits.astype(np.float64)
    z -= z.max(axis=1, keepdims=True)
    picked = z[np.arange(len(z)), labels]
    return float((np.log(np.exp(z).sum(axis=1)) - picked).mean())


def main(side_file: str, options: dict[str, Any]) -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no answer
    if options["cpus"] and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, options["cpus"])  # before any library counts them
    worker = None
    for line in sys.stdin:
        command, job = json.loads(line)
        try:
            if worker is None:
                worker = Worker(runpy.run_path(side_file)["Side"](options))
            answer = {"answer": getattr(worker, command)(job)}
        except Exception as error:
            text = str(error).strip().partition("\n")[0]
            answer = {"error": f"{type(error).__name__}: {text}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
