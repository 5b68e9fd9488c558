"""The data sets that can be downloaded: addresses, and the sizes and hashes of their files.

Sizes and SHA-256 are those of TensorFlow Datasets (``url_checksums/``). The archive of EMNIST has
since moved from www.itl.nist.gov to biometrics.nist.gov, unchanged.
"""

from __future__ import annotations

from typing import NamedTuple


class Download(NamedTuple):
    """One file on a server."""

    url: str
    size: int
    """The size in bytes."""
    sha256: str
    folder: str = ""
    """The folder inside an archive of the `members` that are unpacked from it."""
    members: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.url.rpartition("/")[2]

    @property
    def files(self) -> tuple[str, ...]:
        """The files that remain after fetching; an archive is removed."""
        return self.members or (self.name,)


class Set(NamedTuple):
    """A data set."""

    title: str
    loader: str
    downloads: tuple[Download, ...]


def _list(base: str, text: str) -> tuple[Download, ...]:
    rows = [line.split() for line in text.strip().splitlines()]
    return tuple(Download(base + name, int(size), sha256) for name, size, sha256 in rows)


CIFAR10_TRAIN = tuple(f"data_batch_{i}.bin" for i in range(1, 6))

CIFAR10 = Download(
    "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    170052171,
    "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    "cifar-10-batches-bin",
    (*CIFAR10_TRAIN, "test_batch.bin"),
)

CIFAR100 = Download(
    "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
    168513733,
    "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
    "cifar-100-binary",
    ("train.bin", "test.bin"),
)

FASHION_MNIST = _list(
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    """
train-images-idx3-ubyte.gz 26421880 3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84
train-labels-idx1-ubyte.gz 29515 a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845
t10k-images-idx3-ubyte.gz 4422102 346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073
t10k-labels-idx1-ubyte.gz 5148 67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5
""",
)

KMNIST = _list(
    "http://codh.rois.ac.jp/kmnist/dataset/kmnist/",
    """
train-images-idx3-ubyte.gz 18165135 51467d22d8cc72929e2a028a0428f2086b092bb31cfb79c69cc0a90ce135fde4
train-labels-idx1-ubyte.gz 29497 e38f9ebcd0f3ebcdec7fc8eabdcdaef93bb0df8ea12bee65224341c8183d8e17
t10k-images-idx3-ubyte.gz 3041136 edd7a857845ad6bb1d0ba43fe7e794d164fe2dce499a1694695a792adfac43c5
t10k-labels-idx1-ubyte.gz 5120 20bb9a0ef54c7db3efc55a92eef5582c109615df22683c380526788f98e42a1c
""",
)

EMNIST_SPLITS = ("byclass", "bymerge", "balanced", "letters", "digits", "mnist")


def emnist_files(split: str) -> tuple[str, ...]:
    """Training images and labels, test images and labels."""
    return tuple(
        f"emnist-{split}-{part}-{kind}-ubyte.gz"
        for part in ("train", "test")
        for kind in ("images-idx3", "labels-idx1")
    )


EMNIST = Download(
    "https://biometrics.nist.gov/cs_links/EMNIST/gzip.zip",
    561753746,
    "fb9bb67e33772a9cc0b895e4ecf36d2cf35be8b709693c3564cea2a019fcda8e",
    "gzip",
    tuple(name for split in EMNIST_SPLITS for name in emnist_files(split)),
)

SETS = {
    "cifar10": Set("CIFAR-10", "load_cifar10", (CIFAR10,)),
    "cifar100": Set("CIFAR-100", "load_cifar100", (CIFAR100,)),
    "fashion_mnist": Set("Fashion-MNIST", "load_fashion_mnist", FASHION_MNIST),
    "kmnist": Set("KMNIST", "load_kmnist", KMNIST),
    "emnist": Set("EMNIST", "load_emnist", (EMNIST,)),
}
