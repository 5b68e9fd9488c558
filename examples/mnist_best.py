"""A convolutional network with batch normalization and augmentation on MNIST.

python examples/mnist_best.py [--epochs 12] [--seed 0] [--width 16] [--backend cupy]

Three stages of two convolutions 3 × 3, each with batch normalization and ReLU, the maximum of
2 × 2 between them, dropout and one linear layer (after Simonyan & Zisserman 2015; Ioffe & Szegedy
2015). Training images are shifted by up to 2 pixels and lose a square of 8 × 8 (DeVries & Taylor
2017). AdamW follows one cycle of the learning rate; the test is that of averaged weights.
"""

import argparse

import xbp
from xbp import data, nn, optim
from xbp.training import ExponentialMovingAverage

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--backend", help="numpy, cupy, …; by default XBP_BACKEND, or numpy")
parser.add_argument("--epochs", type=int, default=12)
parser.add_argument("--batch-size", type=int, default=128)
parser.add_argument("--rate", type=float, default=4e-3)
parser.add_argument("--width", type=int, default=16, help="channels of the first stage")
parser.add_argument("--limit", type=int, help="take fewer training images")
parser.add_argument("--seed", type=int, default=0)
options = parser.parse_args()
if options.backend:
    xbp.set_backend(options.backend)

(x, y), (x_test, y_test) = xbp.datasets.load_mnist()
x, x_test = (xbp.datasets.standardize_images(each) for each in (x[: options.limit], x_test))
y = y[: options.limit]

rng, layers, before = xbp.random.generator(options.seed), [], 1
for stage, width in enumerate((options.width, 2 * options.width, 4 * options.width)):
    for channels in (before, width):
        conv = nn.Conv2d(channels, width, 3, padding="same", bias=False, rng=rng)
        layers += [conv, nn.BatchNorm2d(width), nn.ReLU()]
    layers.append(nn.MaxPool2d(2) if stage < 2 else nn.AdaptiveAvgPool2d(1))
    before = width
model = nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.3), nn.Linear(before, 10, rng=rng))

steps = len(x) // options.batch_size
rate = optim.OneCycleLR(options.rate, options.epochs * steps)
optimizer = optim.AdamW(optim.decay_groups(model, weight_decay=0.05), rate)
loss = nn.CrossEntropyLoss(label_smoothing=0.1)
trainer = xbp.Trainer(model, loss, optimizer, ["accuracy"], rng=options.seed)
history = trainer.fit(
    x,
    y,
    epochs=options.epochs,
    batch_size=options.batch_size,
    drop_last=True,  # a last batch of few images has other statistics
    validation_data=(x_test, y_test),
    callbacks=[ExponentialMovingAverage(0.99)],
    augment=data.Compose(data.ShiftedCrop(2, "reflect"), data.Cutout(8)),
)
for record, seconds in zip(history.records, history.seconds, strict=True):
    print(f"epoch {record['epoch']}: test accuracy {record['val_accuracy']:.2%}, {seconds:.1f} s")
print(f"test accuracy {trainer.evaluate(x_test, y_test)['accuracy']:.2%}")
