"""The workloads, their sides, and the arithmetic and memory traffic they need."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

from xbp.benchmarks.networks import make_model, multiplications, sample_bytes


@dataclass(frozen=True)
class Side:
    """A library in one configuration: its name, the file that runs it, and its package.

    `where` is "cpu" or "gpu" for a side that takes part there only, unless it is named explicitly;
    "named" for one that takes part nowhere else.
    """

    title: str
    file: str
    module: str
    install: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    where: str = ""
    whole: str = ""  # imports all of `module`, if ``import`` alone is lazy

    @property
    def reduces(self) -> bool:
        """Whether it can train with products in bfloat16."""
        return self.file in ("side_xbp.py", "side_torch.py")


TORCH = "pip install torch==2.13.0"
OFF = {"XBP_ACCELERATE": "0"}
SWITCHED = {
    "xbp-attention": ("attention by products", "XBP_ATTENTION", "products"),
    "xbp-dependent": ("dependent launch", "XBP_DEPENDENT_LAUNCH", "1"),
    "xbp-whole": ("small networks in one kernel", "XBP_WHOLE", "1"),
    "xbp-winograd": ("a quarter of the products", "XBP_WINOGRAD", "1"),
}
"""Of the sides that do on a GPU what is not done by default: what it is, and the variable that asks
for it, with its value."""
SIDES = {
    "xbp": Side("xbp", "side_xbp.py", "xbp", whole="from xbp import *"),  # on a GPU like `Trainer`
    "xbp-eager": Side(
        *("xbp, eager", "side_xbp.py", "xbp"), options={"trainer": False}, where="gpu"
    ),
    "reference": Side(
        *("xbp, accelerators off", "side_xbp.py", "xbp.accelerators"), environment=OFF
    ),
    **{
        side: Side(
            f"xbp, {what}", "side_xbp.py", "xbp", environment={variable: value}, where="named"
        )
        for side, (what, variable, value) in SWITCHED.items()
    },
    "torch": Side("PyTorch eager", "side_torch.py", "torch", TORCH),
    "torch-compiled": Side(
        *("PyTorch compiled", "side_torch.py", "torch", TORCH), options={"compile": True}
    ),
    "torch-graph": Side(
        *("PyTorch, CUDA graph", "side_torch.py", "torch", TORCH),
        options={"graph": True},
        where="gpu",
    ),
    "jax": Side("JAX jit", "side_jax.py", "jax", "pip install jax"),
    "sklearn": Side(
        *("scikit-learn", "side_sklearn.py", "sklearn", "pip install scikit-learn"), where="cpu"
    ),
    "xbp-numpy": Side(
        *("xbp on numpy", "side_xbp.py", "xbp"),
        options={"backend": "numpy", "device": None, "trainer": False},
        where="gpu",
    ),
    "numpy": Side("numpy", "", "numpy"),  # for import times only
}

XBP = ("xbp", *SWITCHED, "xbp-eager")
PEERS = ("torch", "torch-compiled", "torch-graph", "jax")
EVERY, REPLAYED = (*XBP, "reference", *PEERS), (*XBP, *PEERS)
PREDICTING = ("xbp", "reference", "torch", "torch-compiled", "jax")


SAME = 2e-6
"""Limit of deviations. With PyTorch, JAX and scikit-learn they were at most 2.1e-7, two roundings
of float32; a learning rate that is 10 % off gives at least 4.5e-5."""

SAME_DEEP = 3e-4
"""Limit for deep networks by Adam, with at most 5e-5: a step has the size of the rate even where a
gradient is only rounding. A rate that is 10 % off gives at least 1e-3. Also for scikit-learn's
Adam, whose eps counts more in the first steps."""


@dataclass(frozen=True)
class Workload:
    """A measurement at one or several sizes.

    Attributes
    ----------
    title : str
    unit : str
        Of the costs; see `tables.UNITS`.
    kind : str
        The method of `worker.Worker` that prepares it, or of `Harness` that measures it.
    sides : tuple of str
    sizes : tuple of int
        The batch sizes; empty if it has none.
    model : list
        Name and sizes of a network.
    where : str
        "gpu" for one that is measured there only, "named" for one that is measured nowhere, unless
        it is named explicitly.
    epochs : int
        Of a whole training; 0 for the number in `Scale`, until the accuracy has been reached.
    rate : float
        The maximum of a one-cycle schedule, in a whole training by Adam.
    averaged : bool
        Whether all epochs are made with `Scale.seeds` seeds, whose mean accuracy must reach the
        target. The time is then that of the training and of one evaluation.
    optimizer : {"sgd", "adam"}
        Of a training step.
    same : float
        Largest relative distance between the sides' losses over the first five steps.
    """

    title: str
    unit: str
    kind: str
    sides: tuple[str, ...] = EVERY
    sizes: tuple[int, ...] = ()
    model: list[Any] = field(default_factory=list)
    where: str = ""
    epochs: int = 0
    rate: float = 0.004
    averaged: bool = False
    optimizer: str = "sgd"
    same: float = SAME


def step_of(
    title: str, *model: Any, batch: int, sides: tuple[str, ...] = EVERY, same: float = SAME
) -> Workload:
    """The training step of a network by Adam."""
    whole = f"{title}, training step by Adam"
    return Workload(
        *(whole, "samples/s", "train", sides, (batch,), [*model]), optimizer="adam", same=same
    )


NEXT = {
    "vgg": step_of("VGG, six convolutions", "vgg", 64, 128, 256, batch=64, same=SAME_DEEP),
    "plain20": step_of("plain network of 20 layers", "plain", 20, batch=64, same=SAME_DEEP),
    "resnet20": step_of("ResNet-20", "resnet", 20, batch=64, same=SAME_DEEP),
    "fastcifar": step_of("FastCIFAR", "fastcifar", 32, 64, 128, batch=256, same=SAME_DEEP),
    "mlp-128": step_of("MLP 784-128-10", "mlp", 784, 128, 10, batch=128),
    "mlp-100": step_of(
        *("MLP 784-100-10", "mlp", 784, 100, 10),
        batch=200,
        sides=("xbp", "torch", "sklearn"),
        same=SAME_DEEP,
    ),
    "mlp-tanh": replace(
        step_of("MLP 4-32-16-4, tanh", "tanh", 4, 32, 16, 4, batch=64), sizes=(64, 10_000)
    ),
    "lstm": step_of("LSTM of 128, MNIST row by row", "lstm", 28, 128, 10, batch=128),
    "gru": step_of("GRU of 128, MNIST row by row", "gru", 28, 128, 10, batch=128),
    "gpt": step_of("GPT, 4 layers, width 128", "gpt", 65, 64, 4, 4, 128, batch=12),
}
"""Training steps of the networks that people train after LeNet-5."""

LENET, MLP, RNN = ["lenet5"], ["mlp", 784, 4096, 4096, 10], ["rnn", 28, 128, 10]
GEMM = ("xbp", "torch")
WORKLOADS = {
    "sgemm": Workload(
        "the floor: matrix product of 2048³, on a GPU of 8192³", "GFLOP/s", "sgemm", GEMM
    ),
    "copy": Workload("the floor: copying, bytes read and written", "GB/s", "copy", ("xbp",)),
    "launch": Workload(
        "the floor: kernels that do nothing", "µs", "launch", ("xbp", "torch"), where="gpu"
    ),
    "lenet5-train": Workload(
        *("LeNet-5, training step", "images/s", "train", EVERY, (32, 64, 128, 512, 2048), LENET)
    ),
    "lenet5-infer": Workload(
        *("LeNet-5, inference", "images/s", "infer", PREDICTING, (1, 1024), LENET)
    ),
    "mlp": Workload(
        *("MLP 784-4096-4096-10, training step", "GFLOP/s", "train"),
        *((*EVERY, "sklearn"), (256,), MLP),
    ),
    "mlp-products": Workload(
        "the matrix products of that step alone", "GFLOP/s", "products", GEMM, (256,), MLP
    ),
    "rnn": Workload(
        *("RNN of 128, MNIST row by row, training step", "images/s", "train"),
        *(EVERY, (128,), RNN),
    ),
    **NEXT,
    "accuracy": Workload(
        *("LeNet-5, time to 99 % test accuracy", "s", "learn", EVERY, (128,), LENET)
    ),
    "two-epochs": Workload(
        *("LeNet-5, two epochs and an evaluation: 99 % in the mean of 30 seeds", "s", "learn"),
        *(("xbp", "torch"), (128,), LENET),
        epochs=2,
        rate=0.01,
        averaged=True,
    ),
    "one-epoch": Workload(
        *(
            "smaller network, one epoch and an evaluation: 99 % in the mean of 30 seeds",
            "s",
            "learn",
        ),
        *(("xbp", "torch"), (128,)),
        model=["compact", 8, 48, 128],
        epochs=1,
        rate=0.012,
        averaged=True,
    ),
    "ten-epochs": Workload(
        *("LeNet-5, ten epochs of MNIST", "s", "learn", REPLAYED, (2048,), LENET),
        where="gpu",
        epochs=10,
        rate=0.01,  # on numpy 99.04 % with either of two seeds; with 0.004 it was 98.56 and 98.55
    ),
    "seeds": Workload(
        *("LeNet-5, test error after five epochs, a seed a round", "%", "seeds"),
        *(("xbp", "xbp-eager", "xbp-numpy"), (128,), LENET),
        where="gpu",
        epochs=5,
    ),
    "kernels": Workload(
        *("LeNet-5, kernels and copies a training step", "kernels", "kernels"),
        *(REPLAYED, (128,), LENET),
        where="gpu",
    ),
    "memory": Workload(
        *("LeNet-5, peak memory of training", "MB", "memory"),
        *(("xbp", "xbp-eager", "reference", "torch", "torch-graph", "jax"), (512,), LENET),
    ),
    "memory-next": Workload(
        *("peak memory of training, network by network", "MB", "memories", ("xbp", "torch")),
        where="named",
    ),
    "sweep": Workload(
        *("two convolutions of many shapes, training step", "ms", "sweep", ("xbp", "torch")),
        where="named",
        same=SAME_DEEP,
    ),
    "sweep-windows": Workload(
        *("two convolutions with strides, dilation or groups, training step", "ms", "sweep"),
        ("xbp", "torch"),
        where="named",
        same=SAME_DEEP,
    ),
    "growth": Workload(
        *("LeNet-5, growth of memory over 50 epochs", "MB", "growth", ("xbp",), (128,), LENET),
        epochs=50,
    ),
    "import": Workload("import in a new interpreter", "ms", "imports", ("xbp", "numpy")),
    "call": Workload("call of an empty layer", "µs", "call", ("xbp", "torch")),
}


def takes_part(where: str, backend: str) -> bool:
    """Whether a side or workload with this `where` belongs to a backend."""
    return where in ("", "gpu" if on_gpu(backend) else "cpu")


def on_gpu(backend: str) -> bool:
    return backend == "cupy"


def flop(kind: str, model: list[Any], batch: int) -> int:
    """Floating-point operations of a step in matrix products and convolutions.

    A training step makes three products of a layer, for y, ∂L/∂W and ∂L/∂x; the first layer needs
    no ∂L/∂x.
    """
    first, *others = multiplications(*model)
    once = first + sum(others)
    return 2 * batch * (once if kind == "infer" else 3 * once - first)


def traffic(kind: str, model: list[Any], batch: int) -> int:
    """A lower bound of the bytes that a step moves: the batch and the parameters.

    Samples and labels are read once; each parameter is read, and in training also written.
    """
    parameters: int = sum(p.data.size for p in make_model(*model, rng=0).parameters())
    return batch * sample_bytes(*model) + 4 * parameters * (1 if kind == "infer" else 2)


def step_products(sizes: list[int], batch: int) -> list[list[Any]]:
    """The matrix products (m, k, n, form) of an MLP's training step.

    In the form, t marks an operand that is transposed in memory.
    """
    forward = [[batch, i, o, "nt"] for i, o in pairwise(sizes)]  # x Wᵀ
    weights = [[o, batch, i, "tn"] for i, o in pairwise(sizes)]  # dyᵀ x
    inputs = [[batch, o, i, "nn"] for i, o in pairwise(sizes[1:])]  # dy W
    return forward + weights + inputs
