"""The adding problem: the sum of two marked numbers in a long sequence.

    python examples/adding_problem.py [--cell lstm] [--length 50] [--backend cupy]

Hochreiter & Schmidhuber 1997, section 5.4, with numbers from U(0, 1) and one mark in each half, as
in Le et al. 2015. A constant answer of 1, the mean, has a mean squared error of 1/6; below 0.01 the
problem counts as solved. Every step trains on new sequences.
"""

import argparse

import numpy as np

import xbp
from xbp import nn, optim

CELLS = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--backend", help="numpy, cupy, …; by default XBP_BACKEND, or numpy")
parser.add_argument("--cell", choices=CELLS, default="gru")
parser.add_argument("--hidden", type=int, default=64)
parser.add_argument("--length", type=int, default=50)
parser.add_argument("--steps", type=int, default=2000)
parser.add_argument("--batch-size", type=int, default=64)
parser.add_argument("--lr", type=float, default=0.01)
parser.add_argument("--seed", type=int, default=0)
options = parser.parse_args()
if options.backend:
    xbp.set_backend(options.backend)
rng = xbp.random.generator(options.seed)


def draw(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Sequences (count, length, 2) of a number and a mark, and their sums (count, 1)."""
    half, each = options.length // 2, np.arange(count)
    numbers, marks = rng.random((count, options.length)), np.zeros((count, options.length))
    marks[each, rng.integers(0, half, count)] = 1
    marks[each, rng.integers(half, options.length, count)] = 1
    sums = (numbers * marks).sum(axis=1, keepdims=True)
    return np.stack([numbers, marks], axis=2).astype(np.float32), sums.astype(np.float32)


model = nn.Sequential(
    CELLS[options.cell](2, options.hidden, rng=rng),
    nn.LastTimeStep(),
    nn.Linear(options.hidden, 1, rng=rng),
)
loss = nn.MSELoss()
optimizer = optim.Adam(model.parameters(), lr=optim.OneCycleLR(options.lr, options.steps))
x_test, t_test = map(xbp.asarray, draw(1000))

for step in range(options.steps):
    x, t = map(xbp.asarray, draw(options.batch_size))
    y, backward = model.forward(x, training=True)
    backward(loss(y, t)[1])
    optim.clip_grad_norm(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    if (step + 1) % 200 == 0 or step + 1 == options.steps:
        error = float(xbp.to_numpy(loss(model(x_test), t_test)[0]))
        print(f"step {step + 1}: mean squared error {error:.5f}", flush=True)

verdict = "solved" if error < 0.01 else "not solved"
print(f"{options.cell}, length {options.length}: {verdict}, {error:.5f} of 0.16667 by chance")
