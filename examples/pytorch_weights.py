"""Weights from PyTorch and to PyTorch, as safetensors files.

Names, shapes and the order of the gates of LSTM and GRU are equal in both, so that each reads the
other's files. A recurrent layer needs batch_first=True in PyTorch. PyTorch lacks the layers of
xbp.models.lenet1998.

python examples/pytorch_weights.py
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

import numpy as np

import xbp
from xbp import nn
from xbp.training import load_weights, save_weights

try:
    import torch
    from safetensors.torch import load_file, save_file
except ImportError as error:
    sys.exit(f"this example needs PyTorch ({error}); pip install torch")


def lenet5():
    """A network in PyTorch, the same in xbp, and the shape of a batch."""
    theirs = torch.nn.Sequential(
        *(torch.nn.Conv2d(1, 6, 5, padding=2), torch.nn.ReLU(), torch.nn.MaxPool2d(2)),
        *(torch.nn.Conv2d(6, 16, 5), torch.nn.ReLU(), torch.nn.MaxPool2d(2)),
        *(torch.nn.Flatten(), torch.nn.Linear(400, 120), torch.nn.ReLU()),
        *(torch.nn.Linear(120, 84), torch.nn.ReLU(), torch.nn.Linear(84, 10)),
    )
    return theirs, xbp.models.LeNet5(), (5, 1, 28, 28)


class LastOf(torch.nn.Sequential):
    """A recurrent layer, and a linear layer on its last time step, as with `nn.LastTimeStep`."""

    def forward(self, x):
        recurrent, _, linear = self
        return linear(recurrent(x)[0][:, -1])


def recurrent(kind: str):
    """A classifier of sequences with two bidirectional layers, in PyTorch and in xbp."""
    theirs = LastOf(
        getattr(torch.nn, kind)(28, 32, num_layers=2, bidirectional=True, batch_first=True),
        torch.nn.Identity(),
        torch.nn.Linear(64, 10),
    )
    layer = getattr(nn, kind)(28, 32, num_layers=2, bidirectional=True)
    return theirs, nn.Sequential(layer, nn.LastTimeStep(), nn.Linear(64, 10)), (5, 28, 28)


def from_pytorch(theirs, ours, file: Path) -> None:
    save_file(theirs.state_dict(), file)
    ours.load_state_dict(load_weights(file))


def to_pytorch(theirs, ours, file: Path) -> None:
    save_weights(ours.state_dict(), file)
    theirs.load_state_dict(load_file(file))


def difference(theirs, ours, shape) -> float:
    """The largest difference of outputs for equal inputs, relative to the largest output."""
    x = np.random.default_rng(0).normal(size=shape).astype("float32")
    with torch.no_grad():
        expected = theirs(torch.from_numpy(x)).numpy()
    y = xbp.to_numpy(ours(xbp.asarray(x)))
    return float(np.max(np.abs(y - expected)) / np.max(np.abs(expected)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backend", default=os.environ.get("XBP_BACKEND") or "numpy")
    xbp.set_backend(parser.parse_args().backend)
    networks = {"LeNet-5": lenet5} | {k: lambda k=k: recurrent(k) for k in ("RNN", "LSTM", "GRU")}
    equal = 0
    with tempfile.TemporaryDirectory() as folder:
        for copy in (from_pytorch, to_pytorch):
            for name, make in networks.items():
                theirs, ours, shape = make()
                before = difference(theirs, ours, shape)
                copy(theirs, ours, Path(folder) / "model.safetensors")
                after = difference(theirs, ours, shape)
                keys = list(ours.state_dict())
                print(
                    f"{copy.__name__:12} {name:7} {len(keys)} arrays, {keys[0]}, {keys[1]}, …: ",
                    end="",
                )
                print(f"outputs differed by {before:.0e}, now by {after:.0e}")
                equal += after < 1e-5 < 0.01 < before  # float32 keeps 7 digits
    print(f"the same outputs: {equal} of 8")


if __name__ == "__main__":
    main()
