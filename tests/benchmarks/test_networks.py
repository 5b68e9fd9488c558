"""The networks of the benchmarks: equal on all sides, with correct counts of FLOP."""

import importlib
import math

import numpy as np
import pytest

import xbp
from xbp import nn
from xbp.benchmarks.networks import (
    DATA,
    NETWORKS,
    input_shape,
    make_model,
    multiplications,
    sample_bytes,
)
from xbp.benchmarks.sweep import Convolutions, draw_shapes
from xbp.benchmarks.workloads import WORKLOADS

MODELS = {tuple(w.model) for w in WORKLOADS.values() if w.model}
SMALL = [
    *(("lenet5",), ("mlp", 784, 16, 10), ("tanh", 4, 8, 4), ("vgg", 4, 6), ("plain", 14)),
    *(("compact", 3, 4, 6), ("convolutions", 3, 4, 6, 3)),
    *(("convolutions", 3, 4, 7, 3, 2, 2, 0), ("convolutions", 4, 4, 5, 3, 1, 1, 1)),
    *(
        ("resnet", 14),
        ("fastcifar", 3, 4, 5),
        ("rnn", 28, 8, 10),
        ("lstm", 28, 8, 10),
        ("gru", 28, 8, 10),
    ),
    ("gpt", 65, 64, 2, 2, 8),
]


def samples(name, *sizes, n=5):
    """A batch for the network."""
    rng, data = np.random.default_rng(0), NETWORKS[name].data
    if data in DATA:
        return DATA[data].draw(rng, n)
    return rng.random((n, *input_shape(name, *sizes)), np.float32), rng.integers(10, size=n)


def loss_of(model, spec, x, y):
    return NETWORKS[spec[0]].loss()(model.forward(x, training=True)[0], y)[0]


def test_each_network_has_a_small_model_here():
    assert {spec[0] for spec in SMALL} == set(NETWORKS)


@pytest.mark.parametrize("spec", SMALL, ids=lambda spec: spec[0])
def test_samples_fit(spec):
    x, y = samples(*spec)
    value = float(xbp.to_numpy(loss_of(make_model(*spec, rng=0), spec, x, y)))
    assert 0.3 < value / math.log(65 if spec[0] == "gpt" else 4 if spec[0] == "tanh" else 10) < 2
    assert x.shape[1:] == input_shape(*spec)
    assert sample_bytes(*spec) == x.nbytes // len(x) + y.nbytes // len(y)


@pytest.mark.parametrize("peer", ["torch", "jax"])
@pytest.mark.parametrize("spec", SMALL, ids=lambda spec: spec[0])
def test_peers_build_the_same_network(spec, peer):
    """Equal losses from equal weights, in float32: some roundings, summed over layers."""
    pytest.importorskip(peer)
    models = importlib.import_module(f"xbp.benchmarks.models_{peer}")
    model, (x, y) = make_model(*spec, rng=0), samples(*spec)
    expected, weights = float(loss_of(model, spec, x, y)), model.state_dict()
    if peer == "torch":
        import torch

        theirs = models.make_model(*spec)
        models.load(theirs, weights)
        logits = theirs(torch.from_numpy(x)).detach()
        value = models.make_loss(spec[0])(logits.double(), torch.from_numpy(y.ravel()))
    else:
        logits = np.asarray(models.FORWARDS[spec[0]](weights, x, sizes=spec[1:]))
        loss = nn.CrossEntropyLoss(label_smoothing=NETWORKS[spec[0]].loss().label_smoothing)
        value, _ = loss(logits.astype(np.float64), y.ravel())
    assert float(value) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    "spec",
    [
        *sorted(m for m in MODELS if m[0] not in ("rnn", "lstm", "gru", "gpt")),
        *(("convolutions", 3, 4, 6, 3), ("convolutions", 8, 16, 5, 5)),
        *(("convolutions", 3, 4, 7, 3, 2, 2, 0), ("convolutions", 4, 4, 5, 3, 2, 1, 1)),
    ],
    ids=str,
)
def test_multiplications_are_those_that_pytorch_counts(spec):
    torch = pytest.importorskip("torch")
    from torch.utils.flop_counter import FlopCounterMode

    from xbp.benchmarks.models_torch import make_model as make_peer

    with FlopCounterMode(display=False) as counter:
        make_peer(*spec)(torch.zeros((1, *input_shape(*spec))))
    assert 2 * sum(multiplications(*spec)) == counter.get_total_flops()


def test_shapes_with_windows_are_drawn_apart():
    plain, others = (draw_shapes(20, 1e8, windows=windows) for windows in (False, True))
    assert not any(shape.has_window for shape in plain)
    assert all(shape.has_window for shape in others)
    assert {shape.depthwise for shape in others} == {False, True}
    assert all(shape.channels == shape.outputs for shape in others if shape.depthwise)
    some = Convolutions(8, 8, 16, 3, 2, 2, 1, True)
    assert str(some) == "2 × 8 × 16 × 16, 8 depthwise kernels 3 × 3, stride 2"
    assert some.model == ["convolutions", 8, 8, 16, 3, 2, 1, 1]


def test_multiplications_of_resnet_20():
    """The published 40.6 million for CIFAR-10, with the linear layer."""
    assert sum(multiplications("resnet", 20)) == 40_551_040


@pytest.mark.parametrize(("cell", "gates"), [("rnn", 1), ("lstm", 4), ("gru", 3)])
def test_multiplications_over_time(cell, gates):
    """One product per weight and time step, and one per weight of the last layer."""
    model = make_model(cell, 28, 16, 10, rng=0)
    recurrent, last = (sum(p.data.size for p in model[i].parameters()) for i in (0, 2))
    biases = 2 * gates * 16
    assert sum(multiplications(cell, 28, 16, 10)) == 28 * (recurrent - biases) + last - 10


def test_multiplications_of_gpt():
    """One product per token and weight, the embedding as output, and keys up to each query."""
    spec = "gpt", 65, 64, 2, 2, 8
    matrices = [p for n, p in make_model(*spec, rng=0).named_parameters() if p.data.ndim == 2]
    once = sum(p.data.size for p in matrices) - 64 * 8  # without the positions
    pairs = sum(range(1, 65))  # (query, key)
    assert sum(multiplications(*spec)) == 64 * once + 2 * 2 * pairs * 8
