"""LeNet-5 on MNIST, with the training loop written out.

python examples/lenet5_mnist.py [--backend cupy] [--epochs 6] [--limit 60000]
"""

import argparse

import xbp
from xbp import nn, optim

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--backend", help="numpy, cupy, …; by default XBP_BACKEND, or numpy")
parser.add_argument("--epochs", type=int, default=6)
parser.add_argument("--batch-size", type=int, default=128)
parser.add_argument("--limit", type=int, default=60_000, help="how many training images")
parser.add_argument("--seed", type=int, default=0)
options = parser.parse_args()
if options.backend:
    xbp.set_backend(options.backend)

(x_train, y_train), (x_test, y_test) = xbp.datasets.load_mnist()
x_train, y_train = x_train[: options.limit], y_train[: options.limit]
x = xbp.asarray(xbp.datasets.standardize_images(x_train))  # (N, 1, 28, 28), float32
y = xbp.asarray(y_train)

model = xbp.models.LeNet5(rng=options.seed)
loss = nn.CrossEntropyLoss()
steps = -(-len(x_train) // options.batch_size)
optimizer = optim.Adam(model.parameters(), lr=optim.OneCycleLR(0.004, steps * options.epochs))
xp = xbp.get_backend().xp

for epoch in range(options.epochs):
    order = xbp.asarray(xbp.random.permutation(options.seed, epoch, len(x_train)))
    total = 0.0
    for start in range(0, len(x_train), options.batch_size):
        batch = order[start : min(start + options.batch_size, len(x_train))]
        logits, backward = model.forward(xp.take(x, batch, axis=0), training=True)
        value, gradient = loss(logits, xp.take(y, batch, axis=0))
        backward(gradient)
        optimizer.step()
        optimizer.zero_grad()
        total = total + value  # on the device; only printing it, below, waits
    print(f"epoch {epoch + 1}: mean loss {float(xbp.to_numpy(total)) / steps:.4f}")

test = xbp.datasets.standardize_images(x_test)
right = 0
for start in range(0, len(test), 500):
    logits = xbp.to_numpy(model(xbp.asarray(test[start : start + 500])))
    right += int((logits.argmax(axis=1) == y_test[start : start + 500]).sum())
print(f"test accuracy {right / len(test):.2%}")
