"""CIFAR's binary files: the arrays read are those written, and other files are refused."""

import os
from pathlib import Path

import numpy as np
import pytest

from xbp.datasets import (
    CIFAR10_MEAN,
    CIFAR10_STD,
    cifar,
    load_cifar10,
    load_cifar100,
    read_cifar,
    standardize_images,
)
from xbp.datasets.known import CIFAR10, CIFAR10_TRAIN
from xbp.errors import DataError, InputError


def records(count: int, *classes: int, seed: int = 0) -> tuple[bytes, np.ndarray, np.ndarray]:
    """A file, its labels and its images."""
    rng = np.random.default_rng(seed)
    labels = np.stack([rng.integers(0, n, count, np.uint8) for n in classes], axis=1)
    images = rng.integers(0, 256, (count, 3, 32, 32), np.uint8)
    content = b"".join(
        bytes(label) + b"".join(plane.tobytes() for plane in image)
        for label, image in zip(labels, images, strict=True)
    )
    return content, labels, images


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of the official names with few records."""
    monkeypatch.setattr(cifar, "RECORDS", {"data_batch": 3, "test_batch": 2, "train": 4, "test": 2})


def write(folder: Path, name: str, *args: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    folder.mkdir(parents=True, exist_ok=True)
    content, labels, images = records(*args, seed=seed)
    (folder / name).write_bytes(content)
    return labels, images


def cifar10(folder: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    train = [write(folder, name, 3, 10, seed=i) for i, name in enumerate(CIFAR10_TRAIN)]
    return [*train, write(folder, "test_batch.bin", 2, 10, seed=9)]


@pytest.mark.parametrize("inside", ["", "cifar-10-batches-bin"])
def test_cifar10_is_its_six_files_in_order(small: None, tmp_path: Path, inside: str) -> None:
    *train, test = cifar10(tmp_path / inside)
    (x, y), (x_test, y_test) = load_cifar10(tmp_path)
    np.testing.assert_array_equal(x, np.concatenate([images for _, images in train]))
    np.testing.assert_array_equal(y, np.concatenate([labels[:, 0] for labels, _ in train]))
    np.testing.assert_array_equal(x_test, test[1])
    np.testing.assert_array_equal(y_test, test[0][:, 0])
    assert x.dtype == y.dtype == np.uint8
    assert x.flags.c_contiguous and x_test.flags.c_contiguous and y_test.shape == (2,)


@pytest.mark.parametrize("inside", ["", "cifar-100-binary"])
@pytest.mark.parametrize(("labels", "column"), [("coarse", 0), ("fine", 1)])
def test_cifar100_has_two_kinds_of_labels(
    small: None, tmp_path: Path, inside: str, labels: str, column: int
) -> None:
    y, x = write(tmp_path / inside, "train.bin", 4, 20, 100)
    y_test, x_test = write(tmp_path / inside, "test.bin", 2, 20, 100, seed=1)
    found = load_cifar100(tmp_path, labels=labels)
    np.testing.assert_array_equal(found[0][0], x)
    np.testing.assert_array_equal(found[0][1], y[:, column])
    np.testing.assert_array_equal(found[1][0], x_test)
    np.testing.assert_array_equal(found[1][1], y_test[:, column])


def test_labels_are_fine_or_coarse(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="labels must be one of 'fine', 'coarse', got 'rough'"):
        load_cifar100(tmp_path, labels="rough")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda content: b"", "holds 0 bytes, which are no whole records of 3073"),
        (lambda content: content[:-1], "which are no whole records of 3073"),
        (lambda content: content + b"\0", "which are no whole records of 3073"),
        (lambda content: content[3073:], "holds 2 images, where 3 were expected"),
        (lambda content: content + content[:3073], "holds 4 images, where 3 were expected"),
        (
            lambda content: content[:3073] + b"\x0a" + content[3074:],
            "has the label 10 in record 1, where 0 to 9 were expected",
        ),
    ],
)
def test_a_broken_file_is_one_sentence(small: None, tmp_path: Path, change, said: str) -> None:
    cifar10(tmp_path)
    path = tmp_path / "data_batch_3.bin"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(DataError, match=said) as caught:
        load_cifar10(tmp_path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("column", [0, 1])
def test_each_column_has_its_own_classes(tmp_path: Path, column: int) -> None:
    content, _, _ = records(2, 20, 100)
    largest = bytearray(content)
    largest[0:2] = 19, 99
    path = tmp_path / "train.bin"
    path.write_bytes(largest)
    assert read_cifar(path, label_bytes=2)[1][0].tolist() == [19, 99]
    largest[column] += 1
    path.write_bytes(largest)
    with pytest.raises(DataError, match=f"has the label {largest[column]} in record 0"):
        read_cifar(path, label_bytes=2)


def test_what_is_missing_or_no_file_is_said(small: None, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"lacks data_batch_1\.bin of CIFAR-10; give the folder"):
        load_cifar10(tmp_path)
    cifar10(tmp_path)
    (tmp_path / "data_batch_4.bin").unlink()
    with pytest.raises(DataError, match=r"lacks data_batch_4\.bin of CIFAR-10"):
        load_cifar10(tmp_path)
    os.mkfifo(tmp_path / "data_batch_4.bin")
    with pytest.raises(DataError, match="is a FIFO, where a file of CIFAR's binary version"):
        load_cifar10(tmp_path)
    with pytest.raises(InputError, match="the folder of CIFAR-10 has a path, got an int"):
        load_cifar10(3)
    with pytest.raises(InputError, match="download must be True or False, got 'yes'"):
        load_cifar10(tmp_path, download="yes")


def test_colours_are_standardized_channel_by_channel() -> None:
    images = np.random.default_rng(0).integers(0, 256, (4, 3, 5, 5), np.uint8)
    got = standardize_images(images, CIFAR10_MEAN, CIFAR10_STD, "float64")
    mean, std = (np.array(each).reshape(3, 1, 1) for each in (CIFAR10_MEAN, CIFAR10_STD))
    np.testing.assert_array_equal(got, (images / 255 - mean) / std)
    np.testing.assert_array_equal(standardize_images(images, 0, 1, "float64"), images / 255)
    with pytest.raises(InputError, match="mean has 2 numbers for images of 3 channels; give 3"):
        standardize_images(images, (0, 1), 1)


def test_the_published_images_have_the_published_means() -> None:
    """Also for a copy after JPEG compression, to one level of 256."""
    folder = os.environ.get("XBP_CIFAR10")
    if not folder:
        pytest.skip("XBP_CIFAR10 names no folder with CIFAR-10's binary files")
    assert Path(folder).is_dir()
    (x, y), (x_test, y_test) = load_cifar10(folder)
    assert x.shape == (50_000, 3, 32, 32) and x_test.shape == (10_000, 3, 32, 32)
    assert np.bincount(y).tolist() == [5000] * 10 and np.bincount(y_test).tolist() == [1000] * 10
    scaled = x / 255
    np.testing.assert_allclose(scaled.mean(axis=(0, 2, 3)), CIFAR10_MEAN, atol=1 / 256)
    np.testing.assert_allclose(scaled.std(axis=(0, 2, 3)), CIFAR10_STD, atol=1 / 256)


def test_the_archive_holds_what_the_loader_wants() -> None:
    assert set(CIFAR10.members) == {*CIFAR10_TRAIN, "test_batch.bin"}
