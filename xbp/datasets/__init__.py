"""Data sets: MNIST, which is bundled, and readers and downloads of others."""

from xbp.datasets.cifar import (
    CIFAR10_CLASSES,
    CIFAR10_MEAN,
    CIFAR10_STD,
    CIFAR100_MEAN,
    CIFAR100_STD,
    load_cifar10,
    load_cifar100,
    read_cifar,
)
from xbp.datasets.fetching import fetch
from xbp.datasets.idx import read_idx
from xbp.datasets.labelled_texts import (
    encode_words,
    load_labelled_texts,
    split_words,
    word_vocabulary,
)
from xbp.datasets.mnist import MNIST_MEAN, MNIST_STD, load_mnist, standardize_images
from xbp.datasets.relatives import (
    FASHION_MNIST_CLASSES,
    load_emnist,
    load_fashion_mnist,
    load_kmnist,
)
from xbp.datasets.text import decode_text, encode_text, load_text, text_windows

__all__ = [
    "CIFAR100_MEAN",
    "CIFAR100_STD",
    "CIFAR10_CLASSES",
    "CIFAR10_MEAN",
    "CIFAR10_STD",
    "FASHION_MNIST_CLASSES",
    "MNIST_MEAN",
    "MNIST_STD",
    "decode_text",
    "encode_text",
    "encode_words",
    "fetch",
    "load_cifar10",
    "load_cifar100",
    "load_emnist",
    "load_fashion_mnist",
    "load_kmnist",
    "load_labelled_texts",
    "load_mnist",
    "load_text",
    "read_cifar",
    "read_idx",
    "split_words",
    "standardize_images",
    "text_windows",
    "word_vocabulary",
]
