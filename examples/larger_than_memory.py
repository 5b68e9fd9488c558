"""Training from files that need not fit into memory: CIFAR-10's images, or synthetic ones.

    python examples/larger_than_memory.py                      # synthetic images, some seconds
    python examples/larger_than_memory.py --cifar10 DIR        # 50,000 images, a minute an epoch

The images are written to a pair of .npy files, piece by piece. `data.Files` reads each batch in a
thread, while the network trains on the one before, so that the files may have any size. Flips and
shifted crops change the images in every step.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np

import xbp
from xbp import data, nn, optim


def made_up(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Images of noise in one of ten colours, and the colours as labels."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, count)
    colours = rng.integers(0, 156, (10, 3, 1, 1))
    return (colours[labels] + rng.integers(0, 100, (count, 3, 32, 32))).astype(np.uint8), labels


def write(folder: Path, images: np.ndarray, labels: np.ndarray) -> data.Files:
    """Write standardized images to a file, with at most 1,000 of them in memory."""
    x = np.lib.format.open_memmap(folder / "x.npy", "w+", "float32", images.shape)
    for start in range(0, len(images), 1000):
        piece = images[start : start + 1000]
        x[start : start + 1000] = xbp.datasets.standardize_images(
            piece, xbp.datasets.CIFAR10_MEAN, xbp.datasets.CIFAR10_STD
        )
    x.flush()
    np.save(folder / "y.npy", labels)
    return data.Files(folder / "x.npy", folder / "y.npy")


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, rng=0), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1, rng=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(32 * 8 * 8, 10, rng=2),
    )  # fmt: skip


def main(arguments: list[str] | None = None) -> float:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cifar10", metavar="DIR")
    parser.add_argument("--epochs", type=int, default=2)
    options = parser.parse_args(arguments)
    if options.cifar10:
        (images, labels), _ = xbp.datasets.load_cifar10(options.cifar10)
    else:
        images, labels = made_up(1000)
    with tempfile.TemporaryDirectory() as folder:
        source = write(Path(folder), images, labels)
        train, valid = data.random_split(source, [0.9, 0.1], rng=0)
        model = network()
        adam = optim.Adam(model.parameters(), lr=0.002)
        trainer = xbp.Trainer(model, nn.CrossEntropyLoss(), adam, ["accuracy"], rng=0)
        augment = data.Compose(data.Flip(), data.ShiftedCrop(4))
        history = trainer.fit(
            train, epochs=options.epochs, batch_size=128, validation_data=valid, augment=augment
        )
    accuracy = history["val_accuracy"][-1]
    print(f"{len(train)} images to learn from, accuracy on {len(valid)} others: {accuracy:.1%}")
    return accuracy


if __name__ == "__main__":
    main()
