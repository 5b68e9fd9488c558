"""FastCIFAR on CIFAR-10: time against accuracy, and an epoch of the same recipe in PyTorch.

    python -m benchmarks.cifar10 DIR              # on a quiet machine
    python -m benchmarks.cifar10 DIR --limit 5000 --epochs 1     # a first look

The recipe is that of ``xbp train fastcifar``. PyTorch, with its usual number of threads and from
the same initial weights, makes the first epoch of it: batches, augmentation and rule are the same,
the random numbers are its own; its seconds have no test in them. Then xbp makes the whole training.
After each epoch it prints the seconds so far, with and without the tests, and the accuracy on the
test images.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import xbp
from xbp import optim
from xbp.benchmarks.side_torch import beside
from xbp.cli import networks
from xbp.machine import processor
from xbp.training import LambdaCallback

BATCH, EPOCHS, RATE = 500, 16, 0.1
"""The defaults of ``xbp train fastcifar``."""

VIEWS: list[tuple[dict[str, Any], str]] = [
    ({"mirror": True}, "with mirror images"),
    ({"mirror": True, "shift": 1}, "with mirror images and shifts by one pixel"),
]
"""Tests at the end: arguments of `Trainer.predict`, and their name."""


class Torch:
    """The recipe in PyTorch, from the initial weights of xbp's model."""

    def __init__(self, model: xbp.models.FastCIFAR, steps: int) -> None:
        models = beside("models_torch.py")
        self.model = models["make_model"]("fastcifar", *model.arguments["widths"])
        state = {name: xbp.to_numpy(value) for name, value in model.state_dict().items()}
        models["load"](self.model, state)
        self.loss = torch.nn.CrossEntropyLoss(label_smoothing=0.2)
        learned = [p for p in self.model.parameters() if p.requires_grad]
        self.kernels = [p for p in learned if p.ndim == 4]
        # torch's Muon takes matrices alone: views of the kernels' memory.
        self.matrices = [torch.nn.Parameter(p.data.flatten(1)) for p in self.kernels]
        muon = torch.optim.Muon(self.matrices, RATE, weight_decay=0.12, momentum=0.6)
        groups = [
            {"params": [p for p in learned if p.ndim == 1], "lr": 4 * RATE},
            {"params": [p for p in learned if p.ndim == 2], "lr": 0.5 * RATE, "weight_decay": 5e-4},
        ]
        sgd = torch.optim.SGD(groups, momentum=0.85, nesterov=True)
        self.optimizers = muon, sgd
        up = round(0.23 * steps)

        def factor(step: int) -> float:
            return 0.2 + 0.8 * step / up if step < up else (steps - step) / (steps - up)

        schedule = torch.optim.lr_scheduler.LambdaLR
        self.schedules = [schedule(rule, factor) for rule in self.optimizers]

    def step(self, x: Any, y: Any) -> float:
        for rule in self.optimizers:
            rule.zero_grad()
        for p in self.kernels:
            p.grad = None
        value = self.loss(self.model(x), y)
        value.backward()
        for matrix, p in zip(self.matrices, self.kernels, strict=True):
            matrix.grad = None if p.grad is None else p.grad.flatten(1)
        for rule, schedule in zip(self.optimizers, self.schedules, strict=True):
            rule.step()
            schedule.step()
        return value.item()


def flipped_and_shifted(x: Any) -> Any:
    """Each image or its mirror image, shifted by up to two pixels; the border is reflected."""
    n, _, height, width = x.shape
    x = torch.where(torch.rand(n, 1, 1, 1) < 0.5, x.flip(-1), x)
    padded = torch.nn.functional.pad(x, (2, 2, 2, 2), mode="reflect")
    down, right = torch.randint(0, 5, (2, n, 1))
    rows = (down + torch.arange(height))[:, None, :, None]
    columns = (right + torch.arange(width))[:, None, None, :]
    return padded[
        torch.arange(n)[:, None, None, None], torch.arange(3)[:, None, None], rows, columns
    ]


def epoch_of_torch(model: xbp.models.FastCIFAR, train: Any, steps: int) -> tuple[float, float]:
    """The seconds of PyTorch's first epoch, and its mean loss."""
    peer, losses = Torch(model, steps), list[float]()
    order = np.random.default_rng(0).permutation(len(train))
    began = time.perf_counter()
    for start in range(0, len(order), BATCH):
        x, y = (torch.from_numpy(part) for part in train.batch(order[start : start + BATCH]))
        losses.append(peer.step(flipped_and_shifted(x), y))
    return time.perf_counter() - began, float(np.mean(losses))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="of data_batch_1.bin and the others")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--limit", type=int, help="take fewer training images")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    network = networks.fast_cifar()
    (x, y), held = network.images.load(options.folder)
    train = networks.Standardized(x[: options.limit], y[: options.limit], network.images, "float32")
    test = networks.Standardized(*held, network.images, "float32")

    def prepared() -> Any:
        model = network.make_model(10, dtype="float32", rng=options.seed)
        network.prepare(model, network.images.standardized(x[: networks.PREPARED], "float32"))
        return model

    steps = options.epochs * -(-len(train) // BATCH)
    threads = torch.get_num_threads()
    print(f"{len(train):,} images; torch {torch.__version__}, {threads} threads; {processor()}")
    seconds, loss = epoch_of_torch(prepared(), train, steps)
    print(f"PyTorch: the first epoch takes {seconds:.1f} s, mean loss {loss:.4f}", flush=True)

    model, clock = prepared(), Clock()
    optimizer = network.make_optimizer(model, optim.OneCycleLR(RATE, steps))
    trainer = xbp.Trainer(model, network.loss, optimizer, ["accuracy"], rng=options.seed)
    trainer.fit(
        *(train, None, options.epochs, BATCH, test),
        callbacks=[clock.callback],
        augment=network.augment,
        verbose=False,
    )
    for views, words in VIEWS:
        began = time.perf_counter()
        logits = xbp.to_numpy(trainer.predict(test, **views))
        right = np.argmax(logits, axis=1) == held[1]
        print(f"{words} {right.mean():.2%}, {time.perf_counter() - began:.1f} s", flush=True)


class Clock:
    """A line after each epoch, with the seconds of training alone, and with those of tests."""

    def __init__(self) -> None:
        self.training = 0.0
        self.callback = LambdaCallback(
            on_epoch_begin=self.begin, on_step_end=self.tick, on_epoch_end=self.end
        )

    def begin(self, trainer: Any, epoch: int) -> None:
        self.then = time.perf_counter()

    def tick(self, trainer: Any, step: int) -> None:
        self.now = time.perf_counter()

    def end(self, trainer: Any, epoch: int, record: Any) -> None:
        self.training += self.now - self.then
        passed = sum(trainer.history.seconds)
        print(
            f"epoch {epoch}: {self.training:.1f} s of training, {passed:.1f} s with tests: loss "
            f"{record['loss']:.4f}, test accuracy {record['val_accuracy']:.2%}",
            flush=True,
        )


if __name__ == "__main__":
    main()
