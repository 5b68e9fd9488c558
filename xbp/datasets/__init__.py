"""Data to learn from: MNIST, bundled whole, and the reader of the format it comes in."""

from xbp.datasets.idx import read_idx
from xbp.datasets.mnist import MNIST_MEAN, MNIST_STD, load_mnist, standardize_images

__all__ = ["MNIST_MEAN", "MNIST_STD", "load_mnist", "read_idx", "standardize_images"]
