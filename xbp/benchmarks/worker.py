"""One side of a benchmark in a process of its own, which carries out commands.

    python -P worker.py side_torch.py '{"threads": 2, …}'

It is started by its path and imports nothing from xbp, so that a peer's process holds only the
peer, numpy and this file. Commands and answers are lines of JSON. Between them it sleeps in a read,
and the threads of its library go to sleep during the pause of the harness.

A side file defines a class ``Side``, made from a dictionary of options, with

    versions                             a dictionary of strings
    array(host)                          a numpy array as an array on its device
    take(x, rows)                        rows of such an array
    wait(value)                          returns when `value` has been computed
    to_host(value)                       `value` as a numpy array
    network(model, optimizer, lr)        load(weights), step(x, y) -> loss, predict(x) -> logits,
                                         rate(lr): a model such as ["mlp", 784, 4096, 10]
    identity(x)                          a function that calls a layer without computation
    products(shapes), copy(size, parts)  functions for matrix products, and for copying `size` bytes
    launch(kernels, graph)               a function that launches empty kernels
    held()                               bytes of its arrays, at most and now, and device memory of
                                         all processes
    grow(model, …)                       memory after each epoch of a training

Methods may be missing. An optional list `remarks` holds warnings about the last command.
If the whole data set stays on a device, a network may index the batch itself, by ``feed(x, y)`` and
``step_at(rows) -> loss``; one that trains whole epochs has ``first(…)``, ``fit(…)`` and
``learn(…)`` (see side_xbp.py).
"""

from __future__ import annotations

import json
import os
import runpy
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Worker:
    def __init__(self, side: Any) -> None:
        self.side = side
        self.step: Callable[[int], Any]
        self.turn: Callable[[int], int] = self._one_by_one
        self.learned: tuple[Any, ...] = ()

    def versions(self, job: dict[str, Any]) -> dict[str, str]:
        return {"numpy": np.__version__, **self.side.versions}

    # --- what can be timed: each makes self.step, and returns values that all sides must share ---

    def train(self, job: dict[str, Any]) -> list[float]:
        """Prepare training steps on the batches of a data set in turn; returns the first losses."""
        self.learned = ()
        self.network = self.side.network(job["model"], job["optimizer"], job["lr"])
        self.network.load(_weights(job))
        if "order" in job:
            return self._train_shuffled(job)
        batches = self._batches(job)

        def step(i: int) -> Any:
            return self.network.step(*batches[i % len(batches)])

        self._time(step)
        return [float(self.side.to_host(step(i))) for i in range(job["guard"])]

    def _train_shuffled(self, job: dict[str, Any]) -> list[float]:
        """The same if each step takes its batch from the data set on the device.

        Returns the mean losses of two short epochs, as some sides train whole epochs only.
        """
        (x, y), batch, network = self._set(job, "train"), job["batch"], self.network
        guards = np.load(job["guard_orders"])
        if hasattr(network, "fit"):
            n = guards.shape[1]
            losses: list[float] = network.first(x[:n, ...], y[:n], batch, len(guards))
            self._time(lambda i: network.fit(x, y, batch, 1), lambda n: network.fit(x, y, batch, n))
            return losses
        step_at = self._step_at(x, y)
        order = self._rows(np.load(job["order"])[0], batch)
        self._time(lambda i: step_at(order[i % len(order)]))
        return [self._mean(map(step_at, self._rows(guard, batch))) for guard in guards]

    def _rows(self, order: NDArray[Any], batch: int) -> list[Any]:
        """A shuffle on the device, split into batches."""
        on_device = self.side.array(order)
        n = len(order)
        return [on_device[first : min(first + batch, n)] for first in range(0, n, batch)]

    def _step_at(self, x: Any, y: Any) -> Callable[[Any], Any]:
        """A step on some rows of a data set."""
        network, take = self.network, self.side.take
        if hasattr(network, "step_at"):
            network.feed(x, y)
            return network.step_at  # type: ignore[no-any-return]
        return lambda rows: network.step(take(x, rows), take(y, rows))

    def _mean(self, losses: Iterable[Any]) -> float:
        return float(np.mean([float(self.side.to_host(loss)) for loss in losses]))

    def infer(self, job: dict[str, Any]) -> list[float]:
        """Prepare inference on the same batches; returns the cross-entropy of the first ones."""
        batches = self._batches(job)
        network = self.side.network(job["model"], job["optimizer"], job["lr"])
        network.load(_weights(job))

        def step(i: int) -> Any:
            return network.predict(batches[i % len(batches)][0])

        self._time(step)
        return [
            _cross_entropy(self.side.to_host(step(i)), self.side.to_host(batches[i][1]))
            for i in range(min(job["guard"], len(batches)))
        ]

    def call(self, job: dict[str, Any]) -> list[float]:
        call = self.side.identity(self.side.array(np.ones((1, 8), np.float32)))
        self._time(lambda i: call())
        return []

    def products(self, job: dict[str, Any]) -> list[float]:
        multiply = self.side.products(job["shapes"])
        self._time(lambda i: multiply())
        return []

    def copy(self, job: dict[str, Any]) -> list[float]:
        copy = self.side.copy(job["size"], job["parts"])
        self._time(lambda i: copy())
        return []

    def launch(self, job: dict[str, Any]) -> list[float]:
        launch = self.side.launch(job["kernels"], job["graph"])
        self._time(lambda i: launch())
        return []

    def _time(self, step: Callable[[int], Any], turn: Callable[[int], int] | None = None) -> None:
        """Set what is timed: one step, and the number of steps made if at least n are wanted."""
        self.step, self.turn = step, turn or self._one_by_one

    def _one_by_one(self, steps: int) -> int:
        for i in range(steps):
            value = self.step(i)
        self.side.wait(value)
        return steps

    # --- measuring ---

    def run(self, job: dict[str, Any]) -> float:
        """The seconds for `steps` steps, after one that wakes threads and fills caches."""
        self.side.wait(self.step(0))
        start = time.perf_counter()
        made = self.turn(job["steps"])
        spent = time.perf_counter() - start
        return spent * int(job["steps"]) / made

    def learn(self, job: dict[str, Any]) -> list[dict[str, float]]:
        """Train until `target` is reached; seconds so far and test accuracy after each epoch.

        Without a target all epochs are made, and the accuracy is measured once: after the clock has
        been read, unless the evaluation is to count. The network is the one of `train`, already
        warmed up, with new weights.
        """
        network, batch = self.network, job["batch"]
        # The same arrays for each seed, so that captured graphs stay valid.
        self.learned = self.learned or (*self._set(job, "train"), *self._set(job, "test"))
        x, y, x_test, labels = self.learned
        orders = [self._rows(order, batch) for order in np.load(job["orders"])]
        rates, found = job["rates"], list[dict[str, float]]()
        network.load(_weights(job))
        step_at, step = self._step_at(x, y), 0
        self.side.wait(x)
        start = time.perf_counter()

        def is_done(epoch: int, loss: Any) -> bool:
            if job["target"] is None and epoch < len(orders):
                return False
            self.side.wait(loss)
            seconds = time.perf_counter() - start
            accuracy = self._accuracy(x_test, labels)
            if job["target"] is not None or job["evaluation_counts"]:
                seconds = time.perf_counter() - start
            found.append({"seconds": seconds, "accuracy": accuracy})
            return job["target"] is not None and accuracy >= job["target"]

        if hasattr(network, "learn"):
            network.learn(x, y, batch, len(orders), rates, job["seed"], is_done)
            return found
        for epoch, order in enumerate(orders, start=1):
            for rows in order:
                network.rate(rates[step])
                loss = step_at(rows)
                step += 1
            if is_done(epoch, loss):
                break
        return found

    def _accuracy(self, x: Any, y: Any) -> float:
        labels, correct = self.side.to_host(y), 0
        n = len(labels)
        for first in range(0, n, 1000):
            part = slice(first, min(first + 1000, n))
            logits = self.side.to_host(self.network.predict(x[part, ...]))
            correct += int((logits.argmax(axis=1) == labels[part]).sum())
        return correct / n

    def timeline(self, job: dict[str, Any]) -> dict[str, Any]:
        """The kernels and copies of about `steps` steps; see `summary`.

        PyTorch's profiler uses CUPTI, and so sees the kernels of every library in this process.
        With some versions it misses replays of graphs captured before its first use
        (pytorch/pytorch#100441); with others it records nothing after its first use
        (lightseekorg/tokenspeed#1348). So both are tried; `listen` is the first use.
        """
        import torch
        from torch.profiler import ProfilerActivity, profile

        if not torch.cuda.is_available():
            msg = "kernels are counted by PyTorch's profiler, and this PyTorch has no GPU"
            raise RuntimeError(msg)
        self.side.wait(self.step(0))
        with profile(activities=[ProfilerActivity.CUDA]) as profiler:
            made = self.turn(job["steps"])
            torch.cuda.synchronize()
        with TemporaryDirectory(prefix="xbp.") as folder:
            path = Path(folder) / "trace.json"
            profiler.export_chrome_trace(str(path))
            return summary(json.loads(path.read_text(encoding="utf-8"))["traceEvents"], made)

    def listen(self, job: dict[str, Any]) -> None:
        from torch.profiler import ProfilerActivity, profile

        with profile(activities=[ProfilerActivity.CUDA]):
            pass

    def held(self, job: dict[str, Any]) -> dict[str, int]:
        return self.side.held()  # type: ignore[no-any-return]

    def grow(self, job: dict[str, Any]) -> list[dict[str, int]]:
        """Bytes held after each of `epochs` epochs."""
        self.network = self.side.network(job["model"], job["optimizer"], job["lr"])
        self.network.load(_weights(job))
        x, y = self._set(job, "train")
        return self.side.grow(self.network, x, y, job["batch"], job["epochs"])  # type: ignore[no-any-return]

    def peak(self, job: dict[str, Any]) -> int:
        """The peak resident memory of this process, in bytes."""
        status = Path("/proc/self/status")
        if status.exists():  # getrusage would include the parent's memory at the fork
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
        stem, limit = job["data"], job["images"]
        x, y = (np.load(f"{stem}_{name}_{part}.npy")[:limit] for name in "xy")
        return self.side.array(x.reshape(-1, *job["shape"])), self.side.array(y)


def summary(events: list[dict[str, Any]], steps: int) -> dict[str, Any]:
    """The time of kernels and copies, from a trace in Chrome's format.

    Returns
    -------
    dict
        A step's "kernels" and "copies" (memory set included), the µs that it was "busy" with them
        and, from the first one's begin to the last one's end, the "span"; and for the "largest" of
        all kernels and copies by name: how many, and µs, a step.

    Raises
    ------
    RuntimeError
        No kernel has been seen.
    """
    kinds = {"kernel": "kernels", "gpu_memcpy": "copies", "gpu_memset": "copies"}
    seen = sorted((e for e in events if e.get("cat") in kinds), key=lambda e: e["ts"])
    counts, busy, end = {"kernels": 0, "copies": 0}, 0.0, 0.0
    names: dict[str, list[float]] = {}
    for event in seen:
        counts[kinds[event["cat"]]] += 1
        first, last = event["ts"], event["ts"] + event["dur"]
        busy += max(0.0, last - max(first, end))  # overlapping kernels count once
        end = max(end, last)
        of_name = names.setdefault(event["name"], [0, 0.0])
        of_name[0] += 1
        of_name[1] += event["dur"]
    if not counts["kernels"]:
        msg = "the profiler saw no kernel; the driver may keep its counters from this user"
        raise RuntimeError(msg)
    largest = sorted(names.items(), key=lambda item: -item[1][1])[:12]
    return {
        **{kind: count / steps for kind, count in counts.items()},
        **{"busy": busy / steps, "span": (end - seen[0]["ts"]) / steps},
        "largest": [[name, count / steps, spent / steps] for name, (count, spent) in largest],
    }


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
    os.dup2(2, 1)  # keeps output of libraries out of the answers
    if options["cpus"] and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, options["cpus"])  # before any library counts the cores
    worker = None
    for line in sys.stdin:
        command, job = json.loads(line)
        try:
            if worker is None:
                worker = Worker(runpy.run_path(side_file)["Side"](options))
            answer = {"answer": getattr(worker, command)(job)}
            if remarks := getattr(worker.side, "remarks", []):
                answer["remarks"] = remarks.copy()
                remarks.clear()
        except Exception as error:
            text = str(error).strip().partition("\n")[0]
            answer = {"error": f"{type(error).__name__}: {text}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
