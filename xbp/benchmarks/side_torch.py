"""PyTorch as a side of a benchmark: eager, or with the model compiled."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Side:
    def __init__(self, options: dict[str, Any]) -> None:
        import torch

        self.torch, self.compiled = torch, options.get("compile", False)
        self.device = "cpu"
        self.versions = {"torch": str(torch.__version__)}
        if options["backend"] == "cupy":
            index = str(options["device"] or 0).rpartition(":")[2]
            self.device = f"cuda:{index}"
            self.versions["device"] = torch.cuda.get_device_name(self.device)  # or why there's none
            # PyTorch's own defaults differ: off for products, on for convolutions.
            torch.backends.cuda.matmul.allow_tf32 = options["tf32"]
            torch.backends.cudnn.allow_tf32 = options["tf32"]
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
            self.torch._dynamo.reset()  # or it would take a second batch size for a varying one
        return Network(self, model, optimizer, lr)

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


class Network:
    def __init__(self, side: Side, model: list[Any], optimizer: str, lr: float) -> None:
        torch = self.torch = side.torch
        self.model = make_model(torch, *model).to(side.device)
        self.run = torch.compile(self.model, dynamic=False) if side.compiled else self.model
        self.loss = torch.nn.CrossEntropyLoss()
        self.rule, self.lr = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[optimizer], lr

    def load(self, weights: dict[str, NDArray[np.float32]]) -> None:
        from_numpy = self.torch.from_numpy
        self.model.load_state_dict({name: from_numpy(value) for name, value in weights.items()})
        self.optimizer = self.rule(self.model.parameters(), lr=self.lr)

    def rate(self, lr: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = lr

    def step(self, x: Any, y: Any) -> Any:
        self.optimizer.zero_grad()
        value = self.loss(self.run(x), y)
        value.backward()
        self.optimizer.step()
        return value

    def predict(self, x: Any) -> Any:
        with self.torch.inference_mode():
            return self.run(x)


def make_model(torch: Any, name: str, *sizes: int) -> Any:
    """The model of xbp of the same name and sizes, with the same names in its state dict."""
    nn = torch.nn
    if name == "lenet5":
        return nn.Sequential(
            *(nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
            *(nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)),
        )
    if name == "mlp":
        layers = [
            layer
            for inputs, outputs in pairwise(sizes)
            for layer in (nn.Linear(inputs, outputs), nn.ReLU())
        ]
        return nn.Sequential(*layers[:-1])

    inputs, hidden, classes = sizes
    last = type("Last", (nn.Module,), {"forward": lambda self, outputs: outputs[0][:, -1]})
    rnn = nn.RNN(inputs, hidden, batch_first=True)
    return nn.Sequential(rnn, last(), nn.Linear(hidden, classes))
