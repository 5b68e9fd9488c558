"""ResNet-20 (He et al. 2016, section 4.2) on CIFAR-10.

python examples/resnet20_cifar10.py DIR [--backend cupy] [--epochs 30] [--limit 5000]

DIR holds CIFAR-10's binary files; `xbp data fetch cifar10` downloads them. One command does the
same and writes weights and a report: xbp train resnet20 --data-dir DIR --report
"""

import argparse

import numpy as np

import xbp
from xbp import data, nn, optim
from xbp.datasets import CIFAR10_CLASSES, CIFAR10_MEAN, CIFAR10_STD

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("folder", help="of data_batch_1.bin and the others")
parser.add_argument("--backend", help="numpy, cupy, …; by default XBP_BACKEND, or numpy")
parser.add_argument("--epochs", type=int, default=30)
parser.add_argument("--batch-size", type=int, default=128)
parser.add_argument("--limit", type=int, help="take fewer images of both sets")
parser.add_argument("--seed", type=int, default=0)
options = parser.parse_args()
if options.backend:
    xbp.set_backend(options.backend)

train, test = xbp.datasets.load_cifar10(options.folder)


def source(images, labels):
    """Standardized images and labels, batch by batch: all images as float32 take 600 MB."""
    images, labels = images[: options.limit], labels[: options.limit]

    def batch(indices):
        x = xbp.datasets.standardize_images(images[indices], CIFAR10_MEAN, CIFAR10_STD)
        return x, labels[indices]

    return data.Function(batch, len(images))


model = xbp.models.ResNet(20, rng=options.seed)
steps = options.epochs * -(-len(source(*train)) // options.batch_size)
groups = optim.decay_groups(model, weight_decay=5e-4)  # for kernels and matrices only
rate = optim.OneCycleLR(0.2, steps)
optimizer = optim.SGD(groups, rate, momentum=0.9, nesterov=True)
trainer = xbp.Trainer(model, nn.CrossEntropyLoss(), optimizer, ["accuracy"], rng=options.seed)
history = trainer.fit(
    source(*train),
    epochs=options.epochs,
    batch_size=options.batch_size,
    validation_data=source(*test),
    augment=data.Compose(data.Flip(), data.ShiftedCrop(4)),
)
for epoch, (loss, accuracy) in enumerate(
    zip(history["loss"], history["val_accuracy"], strict=True), 1
):
    print(f"epoch {epoch}: loss {loss:.4f}, test accuracy {accuracy:.2%}")

answers = np.argmax(xbp.to_numpy(trainer.predict(source(*test))), axis=1)
labels = test[1][: options.limit]
for label, name in enumerate(CIFAR10_CLASSES):
    if (labels == label).any():
        print(f"{name}: {(answers[labels == label] == label).mean():.1%}")
