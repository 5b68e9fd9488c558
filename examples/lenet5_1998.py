"""Training of the LeNet-5 of LeCun, Bottou, Bengio & Haffner 1998, written layer by layer.

    python examples/lenet5_1998.py [--backend cupy] [--epochs 6] [--limit 60000]

Network, initial weights, scale of the images and loss (eq. 9) are the paper's. The optimizer is
Adam with a one-cycle learning rate, for six epochs; the paper's stochastic diagonal
Levenberg-Marquardt took twenty, to an error of 0.95 % without distorted images.
"""

import argparse

import xbp
from xbp import optim
from xbp.models import lenet1998
from xbp.nn.summary import summary

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--backend", help="numpy, cupy, …; by default XBP_BACKEND, or numpy")
parser.add_argument("--epochs", type=int, default=6)
parser.add_argument("--batch-size", type=int, default=64)
parser.add_argument("--lr", type=float, default=0.004, help="the highest of the cycle")
parser.add_argument("--limit", type=int, default=60_000, help="how many training images")
parser.add_argument("--seed", type=int, default=0)
options = parser.parse_args()
if options.backend:
    xbp.set_backend(options.backend)

PAPER = {"C1": 156, "S2": 12, "C3": 1516, "S4": 32, "C5": 48120, "F6": 10164}

model = xbp.models.LeNet5(variant="1998", rng=options.seed)
rows = summary(model, (1, 28, 28))
learned = [row for row in rows if row.parameters]
print("layer                  output        parameters   paper")
for (name, expected), row in zip(PAPER.items(), learned, strict=True):
    shape = " × ".join(map(str, row.output_shape))
    print(f"{name}  {row.kind:<15}  {shape:<13}  {row.parameters:>9,}  {expected:>6,}")
print(f"all parameters: {sum(row.parameters for row in rows):,} (paper: 60,000)\n")

# The paper's scale: the background is -0.1 and the ink 1.175, so that an image has a mean of about
# 0 and a variance of about 1.
scale = {"mean": 0.1 / 1.275, "std": 1 / 1.275}
(x_train, y_train), (x_test, y_test) = xbp.datasets.load_mnist()
x_train, y_train = x_train[: options.limit], y_train[: options.limit]
x, x_test = (xbp.datasets.standardize_images(images, **scale) for images in (x_train, x_test))

steps = -(-len(x) // options.batch_size) * options.epochs
optimizer = optim.Adam(model.parameters(), lr=optim.OneCycleLR(options.lr, steps))
trainer = xbp.Trainer(
    model, lenet1998.RejectingCrossEntropyLoss(), optimizer, ["accuracy"], rng=options.seed
)
history = trainer.fit(x, y_train, options.epochs, options.batch_size)
for record in history.records:
    print(f"epoch {record['epoch']}: loss {record['loss']:.3f}, accuracy {record['accuracy']:.2%}")
result = trainer.evaluate(x_test, y_test)
print(f"test accuracy {result['accuracy']:.2%}")
