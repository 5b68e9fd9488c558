"""MNIST as sequences of rows: 28 time steps of 28 pixels, classified after the last one.

    python examples/rnn_mnist_rows.py [--cell rnn] [--epochs 10] [--hidden 128] [--backend cupy]

Expected test accuracy after 10 epochs: at least 97 % (rnn), 98 % (lstm, gru).
"""

import argparse

import xbp
from xbp import nn, optim

CELLS = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--backend", help="numpy, cupy, …; by default XBP_BACKEND, or numpy")
parser.add_argument("--cell", choices=CELLS, default="gru")
parser.add_argument("--hidden", type=int, default=128)
parser.add_argument("--layers", type=int, default=1)
parser.add_argument("--truncate", type=int, help="rows that a gradient passes; by default all")
parser.add_argument("--epochs", type=int, default=10)
parser.add_argument("--batch-size", type=int, default=128)
parser.add_argument("--lr", type=float, default=0.002)
parser.add_argument("--limit", type=int, default=60_000, help="how many training images")
parser.add_argument("--seed", type=int, default=0)
options = parser.parse_args()
if options.backend:
    xbp.set_backend(options.backend)

(x_train, y_train), (x_test, y_test) = xbp.datasets.load_mnist()
x_train, y_train = x_train[: options.limit], y_train[: options.limit]
x = xbp.asarray(xbp.datasets.standardize_images(x_train)[:, 0])  # (N, row, pixel), float32
y = xbp.asarray(y_train)

rng = xbp.random.generator(options.seed)
cell = CELLS[options.cell]
model = nn.Sequential(
    cell(28, options.hidden, options.layers, truncate=options.truncate, rng=rng),
    nn.LastTimeStep(),
    nn.Linear(options.hidden, 10, rng=rng),
)
loss = nn.CrossEntropyLoss()
steps = -(-len(x_train) // options.batch_size)
optimizer = optim.Adam(model.parameters(), lr=optim.OneCycleLR(options.lr, steps * options.epochs))
xp = xbp.get_backend().xp

for epoch in range(options.epochs):
    order = xbp.asarray(xbp.random.permutation(options.seed, epoch, len(x_train)))
    total = 0.0
    for start in range(0, len(x_train), options.batch_size):
        batch = order[start : min(start + options.batch_size, len(x_train))]
        logits, backward = model.forward(xp.take(x, batch, axis=0), training=True)
        value, gradient = loss(logits, xp.take(y, batch, axis=0))
        backward(gradient)
        optim.clip_grad_norm(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        total = total + value  # on the device; only printing it, below, waits
    print(f"epoch {epoch + 1}: mean loss {float(xbp.to_numpy(total)) / steps:.4f}", flush=True)

test = xbp.datasets.standardize_images(x_test)[:, 0]
right = 0
for start in range(0, len(test), 500):
    logits = xbp.to_numpy(model(xbp.asarray(test[start : start + 500])))
    right += int((logits.argmax(axis=1) == y_test[start : start + 500]).sum())
print(f"{options.cell} of {options.hidden}: test accuracy {right / len(test):.2%}")
