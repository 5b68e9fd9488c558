"""PyTorch as a side of a benchmark: eager, compiled, or replaying a CUDA graph.

Not yet run on a GPU.
"""

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
        import torch

        self.torch, self.compiled = torch, options.get("compile", False)
        self.graph, self.on_gpu = options.get("graph", False), options["backend"] == "cupy"
        self.device, self.bfloat16 = "cpu", options.get("bfloat16", False)
        self.versions = {"torch": str(torch.__version__)}
        if self.graph and not self.on_gpu:
            msg = "a CUDA graph needs a GPU"
            raise RuntimeError(msg)
        if self.on_gpu:
            if torch.version.cuda is None:
                msg = f"PyTorch {torch.__version__} was built without CUDA"
                raise RuntimeError(msg)
            index = str(options["device"] or 0).rpartition(":")[2]
            self.device = f"cuda:{index}"
            torch.cuda.set_device(self.device)
            self.versions["device"] = torch.cuda.get_device_name(self.device)  # or raises
            self.versions["CUDA of torch"] = str(torch.version.cuda)
            # By default it is off for products and on for convolutions.
            torch.backends.cuda.matmul.allow_tf32 = options["tf32"]
            torch.backends.cudnn.allow_tf32 = options["tf32"]
            torch.backends.cudnn.benchmark = True  # all batches but the last have the same size
        torch.set_num_threads(options["threads"])
        self.versions["threads"] = str(torch.get_num_threads())

    def array(self, host: NDArray[Any]) -> Any:
        return self.torch.from_numpy(host).to(self.device)

    def take(self, x: Any, rows: Any) -> Any:
        return x[rows]

    def wait(self, value: Any) -> None:
        if self.device != "cpu":
            self.torch.cuda.synchronize()

    def to_host(self, value: Any) -> NDArray[Any]:
        return value.detach().cpu().numpy()  # type: ignore[no-any-return]

    def network(self, model: list[Any], optimizer: str, lr: float) -> Network:
        if self.compiled:
            self.torch._dynamo.reset()  # a second batch size would count as dynamic
        return (Graphed if self.graph else Network)(self, model, optimizer, lr)

    def identity(self, x: Any) -> Callable[[], None]:
        layer = self.torch.nn.Identity()

        def call() -> None:
            layer(x)

        return call

    def products(self, shapes: list[list[Any]]) -> Callable[[], Any]:
        torch, operands = self.torch, []
        for m, k, n, form in shapes:
            a = torch.rand(m, k) if form[0] == "n" else torch.rand(k, m).T
            b = torch.rand(k, n) if form[1] == "n" else torch.rand(n, k).T
            operands.append([t.to(self.device) for t in (a, b, torch.zeros(m, n))])

        def multiply() -> Any:
            for a, b, c in operands:
                torch.mm(a, b, out=c)

        return multiply

    def launch(self, kernels: int, graph: bool) -> Callable[[], None]:
        """Kernels that sleep for 0 cycles, the least that PyTorch offers."""
        cuda = self.torch.cuda

        def launch() -> None:
            for _ in range(kernels):
                cuda._sleep(0)

        launch()  # loads the kernel before a capture
        if not graph:
            return launch
        cuda.synchronize()
        captured = cuda.CUDAGraph()
        with cuda.graph(captured):
            launch()
        return captured.replay  # type: ignore[no-any-return]

    def held(self) -> dict[str, int]:
        cuda = self.torch.cuda
        free, total = cuda.mem_get_info()
        most, now = cuda.max_memory_allocated(), cuda.memory_allocated()
        return {"most": most, "now": now, "device": total - free}


class Network:
    def __init__(self, side: Side, model: list[Any], optimizer: str, lr: float) -> None:
        torch = self.torch = side.torch
        self.models = beside("models_torch.py")
        self.model = self.models["make_model"](*model).to(side.device)
        self.run, self.loss = self.model, self.models["make_loss"](model[0])
        # A cache of rounded weights would not be that of a replayed graph.
        how = {"dtype": torch.bfloat16, "enabled": side.bfloat16, "cache_enabled": False}
        self.rounded = partial(torch.autocast, side.device.partition(":")[0], **how)
        self.objective, self.replays = self._objective, side.compiled and side.on_gpu
        if self.replays:  # this mode uses CUDA graphs
            compiled = partial(torch.compile, dynamic=False, mode="max-autotune")
            self.run, self.objective = compiled(self.model), compiled(self._objective)
        elif side.compiled:
            self.run = torch.compile(self.model, dynamic=False)
        self.rule, self.lr = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[optimizer], lr

    def load(self, weights: dict[str, NDArray[np.float32]]) -> None:
        self.models["load"](self.model, weights)
        self.optimizer = self.rule(self.model.parameters(), lr=self.lr)

    def rate(self, lr: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = lr

    def step(self, x: Any, y: Any) -> Any:
        if self.replays:
            self.torch.compiler.cudagraph_mark_step_begin()
        self.optimizer.zero_grad()
        value = self.objective(x, y)
        value.backward()
        self.optimizer.step()
        return value

    def _objective(self, x: Any, y: Any) -> Any:
        with self.rounded():
            return self.loss(self.run(x), y.flatten())  # of tokens, (N, T)

    def predict(self, x: Any) -> Any:
        with self.torch.inference_mode():
            return self.run(x)


class Graphed(Network):
    """The whole step, from indexing the batch to the optimizer, captured once and replayed.

    It follows PyTorch's notes on CUDA graphs: static inputs, warm-up steps on a side stream,
    gradients in the memory of the graph, and an optimizer with rate and step count on the device
    (the fused one, which is the fastest). Only the row indices are copied in before a replay. Each
    batch size has its own graph.
    """

    WARM_UP = 3

    def __init__(self, side: Side, model: list[Any], optimizer: str, lr: float) -> None:
        super().__init__(side, model, optimizer, lr)
        options = {"capturable": True} if optimizer == "adam" else {}
        self.rate_now = self.torch.full((), lr, device=side.device)
        parameters = self.model.parameters()
        self.optimizer = self.rule(parameters, lr=self.rate_now, fused=True, **options)
        self.graphs: dict[int, tuple[Any, Any, Any]] = {}
        self.set: tuple[Any, Any] = (None, None)

    def load(self, weights: dict[str, NDArray[np.float32]]) -> None:
        self.models["load"](self.model, weights)
        for tensor in self._state():
            tensor.zero_()  # in place, as the graphs use these tensors

    def rate(self, lr: float) -> None:
        self.rate_now.fill_(lr)

    def feed(self, x: Any, y: Any) -> None:
        if x is not self.set[0]:
            self.graphs.clear()
        self.set = x, y

    def step_at(self, rows: Any) -> Any:
        size = len(rows)
        if size not in self.graphs:
            self.graphs[size] = self._capture(rows)
        graph, static, value = self.graphs[size]
        static.copy_(rows)
        graph.replay()
        return value

    def step(self, x: Any, y: Any) -> Any:
        self.optimizer.zero_grad()
        value = self.objective(x, y)
        value.backward()
        self.optimizer.step()
        return value

    def _capture(self, rows: Any) -> tuple[Any, Any, Any]:
        cuda, static = self.torch.cuda, rows.clone()
        x, y = self.set
        before = [(t, t.detach().clone()) for t in (*self.model.parameters(), *self._state())]
        stream = cuda.Stream()
        stream.wait_stream(cuda.current_stream())
        with cuda.stream(stream):
            for _ in range(self.WARM_UP):
                self.step(x[static], y[static])
        cuda.current_stream().wait_stream(stream)
        graph = cuda.CUDAGraph()
        self.optimizer.zero_grad()  # to None: the capture allocates them in the graph's memory
        with cuda.graph(graph):
            value = self.step(x[static], y[static])
        with self.torch.no_grad():  # undoes the training of the warm-up
            for tensor in self._state():
                tensor.zero_()
            for tensor, old in before:
                tensor.copy_(old)
        return graph, static, value.detach()

    def _state(self) -> list[Any]:
        """The tensors of the optimizer's state."""
        states = self.optimizer.state.values()
        return [t for s in states for t in s.values() if self.torch.is_tensor(t)]


def beside(file: str) -> dict[str, Any]:
    """What a file of this folder defines; the folder is not on the path, see `worker`."""
    return runpy.run_path(str(Path(__file__).with_name(file)))
