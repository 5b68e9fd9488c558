"""A small network on CIFAR-10, whose first layer whitens (after Jordan 2024).

python examples/fast_cifar10.py DIR [--backend cupy] [--epochs 16] [--limit 5000]

DIR holds CIFAR-10's binary files; `xbp data fetch cifar10` downloads them. One command does the
same and writes weights and a report: xbp train fastcifar --data-dir DIR --report
"""

import argparse

import numpy as np

import xbp
from xbp import data, nn, optim
from xbp.datasets import CIFAR10_MEAN, CIFAR10_STD

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("folder", help="of data_batch_1.bin and the others")
parser.add_argument("--backend", help="numpy, cupy, …; by default XBP_BACKEND, or numpy")
parser.add_argument("--epochs", type=int, default=16)
parser.add_argument("--batch-size", type=int, default=500)
parser.add_argument("--limit", type=int, help="take fewer images of both sets")
parser.add_argument("--seed", type=int, default=0)
options = parser.parse_args()
if options.backend:
    xbp.set_backend(options.backend)


def standardized(images):
    return xbp.datasets.standardize_images(images, CIFAR10_MEAN, CIFAR10_STD)


def source(images, labels):
    """Standardized images and labels, batch by batch."""
    images, labels = images[: options.limit], labels[: options.limit]
    return data.Function(lambda i: (standardized(images[i]), labels[i]), len(images))


train, test = xbp.datasets.load_cifar10(options.folder)
model = xbp.models.FastCIFAR(widths=(64, 128, 256), rng=options.seed)
model.whiten(standardized(train[0][: options.limit][:5000]))
steps = options.epochs * -(-len(source(*train)) // options.batch_size)
up = max(1, round(0.23 * steps))


def rate(highest):
    """From a fifth to the highest rate, and to 0."""
    rising = optim.LinearLR(highest, 0.2, 1.0, up)
    return optim.SequentialLR([rising, optim.LinearLR(highest, 1.0, 0.0, max(1, steps - up))], [up])


kernels, vectors, matrices = (
    [p for p in model.parameters() if p.data.ndim == axes] for axes in (4, 1, 2)
)
sgd = {"rule": optim.SGD, "momentum": 0.85, "nesterov": True}
groups = [
    {"params": kernels},
    {"params": vectors, "lr": rate(0.4), "weight_decay": 0.0, **sgd},
    {"params": matrices, "lr": rate(0.05), "weight_decay": 5e-4, **sgd},
]
optimizer = optim.Muon(groups, rate(0.1), weight_decay=0.12, momentum=0.6)
loss = nn.CrossEntropyLoss(label_smoothing=0.2)
trainer = xbp.Trainer(model, loss, optimizer, ["accuracy"], rng=options.seed)
history = trainer.fit(
    source(*train),
    epochs=options.epochs,
    batch_size=options.batch_size,
    validation_data=source(*test),
    augment=data.Compose(data.Flip(), data.ShiftedCrop(2, "reflect")),
)
seconds = 0.0
for epoch, accuracy in enumerate(history["val_accuracy"], 1):
    seconds += history.seconds[epoch - 1]
    print(f"epoch {epoch}: test accuracy {accuracy:.2%} after {seconds:.1f} s")
# The mean over six views: each image, it moved by one pixel both ways, and their mirror images.
logits = trainer.predict(source(*test), mirror=True, shift=1)
right = np.argmax(xbp.to_numpy(logits), axis=1) == test[1][: options.limit]
print(f"test accuracy over six views {right.mean():.2%}")
