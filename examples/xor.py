"""XOR by sigmoid networks, trained until they converge or for a maximum number of epochs.

    python examples/xor.py [--backend array_api_strict] [--seeds 20]

Loss 1/2N Σ ‖y - t‖², full batches, gradient descent with momentum. The loss lies on a plateau
near 1/8 before the network finds the pattern, so a large tolerance would end there.
"""

import argparse

import numpy as np

import xbp
from xbp import nn, optim
from xbp.initializers import normal
from xbp.training import Convergence

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--backend", help="numpy, cupy, …; by default XBP_BACKEND, or numpy")
parser.add_argument("--seeds", type=int, default=20)
parser.add_argument("--epochs", type=int, default=2000, help="at most")
parser.add_argument("--tolerance", type=float, default=1e-7)
options = parser.parse_args()
if options.backend:
    xbp.set_backend(options.backend)

x = xbp.asarray([[0, 0], [0, 1], [1, 0], [1, 1]], dtype="float64")
t = xbp.asarray([[0], [1], [1], [0]], dtype="float64")


def run(hidden: int, seed: int) -> tuple[bool, str, float]:
    """Whether all four outputs are right, the reason why training ended, and the last loss."""
    rng = xbp.random.generator(seed)
    keywords = {"dtype": "float64", "rng": rng, "weight_init": normal}
    model = nn.Sequential(
        nn.Linear(2, hidden, **keywords),
        nn.Sigmoid(),
        nn.Linear(hidden, 1, **keywords),
        nn.Sigmoid(),
    )
    optimizer = optim.SGD(model.parameters(), lr=5.0, momentum=0.9)
    trainer = xbp.Trainer(model, nn.MSELoss("batchmean", factor=0.5), optimizer, rng=rng)
    settled = Convergence(options.tolerance)
    history = trainer.fit(x, t, options.epochs, batch_size=4, callbacks=[settled], verbose=False)
    right = np.array_equal(xbp.to_numpy(trainer.predict(x)) > 0.5, xbp.to_numpy(t) == 1)
    return right, history.stopped, history["loss"][-1]


for hidden in (2, 4):
    solved = 0
    for seed in range(options.seeds):
        right, reason, loss = run(hidden, seed)
        solved += right
        verdict = "right" if right else "wrong"
        print(f"2-{hidden}-1, seed {seed:2}: {verdict}, loss {loss:.1e}; {reason}")
    print(f"2-{hidden}-1: all four patterns right for {solved} of {options.seeds} seeds\n")
