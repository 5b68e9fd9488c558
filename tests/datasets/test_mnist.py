"""The bundled MNIST is the published one; sets that do not fit together are refused."""

import gzip
import hashlib
import shutil
import struct
import subprocess
import sys
import tracemalloc
from math import isqrt
from pathlib import Path

import numpy as np
import pytest

import xbp.datasets
from xbp.datasets import MNIST_MEAN, MNIST_STD, load_mnist, standardize_images
from xbp.errors import DataError, InputError

BUNDLED = Path(xbp.datasets.__file__).parent / "data" / "mnist"
MD5 = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS = MD5


@pytest.fixture(scope="module")
def mnist():
    return load_mnist()


def idx(code: int, *shape: int) -> bytes:
    """Return an IDX file of one-byte items 0, 1, 2…"""
    items = bytes(range(np.prod(shape)))
    return struct.pack(f">4B{len(shape)}I", 0, 0, code, len(shape), *shape) + items


@pytest.fixture
def folder(tmp_path):
    """Return a folder with a valid set: three training and two test images of 4 x 5."""
    (tmp_path / TRAIN_IMAGES).write_bytes(idx(0x08, 3, 4, 5))
    (tmp_path / TRAIN_LABELS).write_bytes(idx(0x08, 3))
    (tmp_path / TEST_IMAGES).write_bytes(idx(0x08, 2, 4, 5))
    (tmp_path / TEST_LABELS).write_bytes(idx(0x08, 2))
    return tmp_path


def refusal(folder: Path) -> str:
    with pytest.raises(DataError) as caught:
        load_mnist(folder)
    message = str(caught.value)
    assert message.isprintable()
    return message


class TestBundledData:
    @pytest.mark.parametrize(("name", "md5"), MD5.items())
    def test_uncompressed_files_are_the_published_ones(self, name, md5):
        content = gzip.decompress((BUNDLED / f"{name}.gz").read_bytes())
        assert hashlib.md5(content, usedforsecurity=False).hexdigest() == md5

    def test_readme_has_every_checksum_and_the_licence(self):
        readme = (BUNDLED / "README.md").read_text(encoding="utf-8")
        for name, md5 in MD5.items():
            data = (BUNDLED / f"{name}.gz").read_bytes()
            row = [f"{name}.gz", hashlib.md5(data, usedforsecurity=False).hexdigest(), md5]
            assert f"| {' | '.join(row)} |" in readme
        assert "CC BY-SA 3.0" in readme
        assert "Yann LeCun and Corinna Cortes hold the copyright" in readme

    def test_shapes_and_dtypes(self, mnist):
        (x_train, y_train), (x_test, y_test) = mnist
        assert x_train.shape == (60000, 28, 28)
        assert y_train.shape == (60000,)
        assert x_test.shape == (10000, 28, 28)
        assert y_test.shape == (10000,)
        assert {a.dtype for a in (x_train, y_train, x_test, y_test)} == {np.dtype(np.uint8)}

    def test_labels(self, mnist):
        (_, y_train), (_, y_test) = mnist
        assert y_train[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
        assert y_test[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
        train_counts = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
        test_counts = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
        assert np.bincount(y_train).tolist() == train_counts
        assert np.bincount(y_test).tolist() == test_counts

    def test_the_first_images_stand_upright(self, mnist):
        """Orientation: the bar of a 7 is on top, and its stem ends at the bottom."""
        (x_train, _), (x_test, _) = mnist
        assert x_train[0, 5, 12:16].tolist() == [3, 18, 18, 18]
        assert x_test[0, 7, 6:10].tolist() == [84, 185, 159, 151]
        assert x_test[0, :7].max() == 0
        assert x_test[0, 26, 10:13].min() > 0

    def test_mean_and_std_are_the_training_sets(self, mnist):
        """The two constants from integer sums, to the last digit but one."""
        (x_train, _), _ = mnist
        counts = np.bincount(x_train.reshape(-1), minlength=256).tolist()
        n = sum(counts)
        total = sum(pixel * count for pixel, count in enumerate(counts))
        squares = sum(pixel**2 * count for pixel, count in enumerate(counts))
        assert pytest.approx(total / (255 * n), rel=1e-15, abs=0) == MNIST_MEAN
        # a factor of 1e16 in the integer root gives the quotient sixteen digits
        root = isqrt((n * squares - total**2) * 10**16) / 10**8
        assert pytest.approx(root / (255 * n), rel=1e-15, abs=0) == MNIST_STD

    def test_import_stays_light(self):
        """The datasets need numpy and the stdlib; a bare package stands in for what xbp imports."""
        code = (
            "import sys, types, numpy; before = set(sys.modules);"
            "xbp = sys.modules['xbp'] = types.ModuleType('xbp'); xbp.__path__ = sys.argv[1:];"
            "import xbp.datasets;"
            "added = {name.partition('.')[0] for name in set(sys.modules) - before};"
            "print(*added - sys.stdlib_module_names - {'numpy', 'xbp'})"
        )
        command = [sys.executable, "-c", code, str(Path(xbp.datasets.__file__).parents[1])]
        run = subprocess.run(command, check=False, capture_output=True, text=True)
        assert (run.returncode, run.stdout.strip()) == (0, ""), run.stderr


class TestDataDir:
    @pytest.mark.parametrize("as_type", [str, Path])
    def test_loads_a_set_of_the_same_form(self, folder, as_type):
        (x_train, y_train), (x_test, y_test) = load_mnist(as_type(folder))
        np.testing.assert_array_equal(x_train, np.arange(60).reshape(3, 4, 5))
        np.testing.assert_array_equal(x_test, np.arange(40).reshape(2, 4, 5))
        assert y_train.tolist() == [0, 1, 2]
        assert y_test.tolist() == [0, 1]

    def test_loads_files_of_either_name(self, folder):
        plain = folder / TRAIN_IMAGES
        plain.with_name(f"{TRAIN_IMAGES}.gz").write_bytes(gzip.compress(plain.read_bytes()))
        plain.unlink()
        assert load_mnist(folder)[0][0].shape == (3, 4, 5)

    def test_the_plain_name_wins(self, folder):
        (folder / f"{TRAIN_IMAGES}.gz").write_bytes(b"not read")
        assert load_mnist(folder)[0][0].shape == (3, 4, 5)

    def test_loads_signed_labels(self, folder):
        (folder / TRAIN_LABELS).write_bytes(idx(0x09, 3))
        assert load_mnist(folder)[0][1].dtype == np.int8

    def test_refuses_a_missing_folder(self, tmp_path):
        message = refusal(tmp_path / "absent")
        assert f"{str(tmp_path / 'absent')!r} is no folder" in message
        assert all(name in message for name in MD5)

    def test_refuses_a_file_for_a_folder(self, folder):
        assert "is no folder but a file" in refusal(folder / TRAIN_IMAGES)

    def test_refuses_an_unreadable_folder(self, tmp_path):
        assert repr(str(tmp_path / ("x" * 300))) in refusal(tmp_path / ("x" * 300))

    @pytest.mark.parametrize("name", MD5)
    def test_refuses_a_missing_file(self, folder, name):
        (folder / name).unlink()
        message = refusal(folder)
        assert f"{str(folder)!r} lacks {name};" in message
        assert all(name in message for name in MD5)
        assert ".gz" in message

    @pytest.mark.parametrize("name", MD5)
    def test_refuses_a_folder_for_a_file(self, folder, name):
        """Files in folders of their own name, as some archives unpack them."""
        (folder / name).unlink()
        (folder / name).mkdir()
        assert f"lacks {name};" in refusal(folder)

    @pytest.mark.parametrize("name", MD5)
    def test_refuses_a_damaged_file(self, folder, name):
        path = folder / name
        path.write_bytes(path.read_bytes()[:-1])
        assert f"{str(path)!r} holds only" in refusal(folder)

    @pytest.mark.parametrize("name", [TRAIN_IMAGES, TEST_IMAGES])
    @pytest.mark.parametrize(
        ("content", "found"),
        [
            (idx(0x08, 3), "uint8 (3,)"),
            (idx(0x08, 3, 20), "uint8 (3, 20)"),
            (idx(0x08, 3, 1, 4, 5), "uint8 (3, 1, 4, 5)"),
            (idx(0x09, 3, 4, 5), "int8 (3, 4, 5)"),
        ],
    )
    def test_refuses_other_images(self, folder, name, content, found):
        (folder / name).write_bytes(content)
        assert f"{str(folder / name)!r} holds {found}; put uint8 images" in refusal(folder)

    @pytest.mark.parametrize("name", [TRAIN_LABELS, TEST_LABELS])
    @pytest.mark.parametrize(
        ("content", "found"),
        [
            (idx(0x08, 3, 1), "uint8 (3, 1)"),
            (idx(0x0D, 0), "float32 (0,)"),
        ],
    )
    def test_refuses_other_labels(self, folder, name, content, found):
        (folder / name).write_bytes(content)
        assert f"{str(folder / name)!r} holds {found}; put integer labels" in refusal(folder)

    @pytest.mark.parametrize(
        ("images", "labels"), [(TRAIN_IMAGES, TRAIN_LABELS), (TEST_IMAGES, TEST_LABELS)]
    )
    def test_refuses_unequal_counts(self, folder, images, labels):
        (folder / labels).write_bytes(idx(0x08, 4))
        message = refusal(folder)
        assert f"{str(folder / images)!r} holds {3 if images == TRAIN_IMAGES else 2} im" in message
        assert f"{str(folder / labels)!r} 4 labels" in message

    def test_refuses_two_sizes_of_image(self, folder):
        (folder / TEST_IMAGES).write_bytes(idx(0x08, 2, 5, 4))
        message = refusal(folder)
        assert f"{str(folder / TRAIN_IMAGES)!r} has images of shape (4, 5)" in message
        assert f"{str(folder / TEST_IMAGES)!r} of (5, 4)" in message

    def test_names_the_file_it_read(self, folder):
        shutil.move(folder / TEST_LABELS, folder / f"{TEST_LABELS}.gz")
        (folder / f"{TEST_LABELS}.gz").write_bytes(b"")
        assert f"{TEST_LABELS}.gz' is empty" in refusal(folder)


class TestStandardizeImages:
    @pytest.mark.parametrize("dtype", ["float16", "float32", "float64", np.float32])
    def test_every_pixel_value_is_rounded_once(self, dtype):
        images = np.arange(256, dtype=np.uint8).reshape(2, 8, 16)
        result = standardize_images(images, 0.25, 0.5, dtype)
        expected = [float((i / 255 - 0.25) / 0.5) for i in range(256)]
        assert result.shape == (2, 1, 8, 16)
        assert result.dtype == np.dtype(dtype)
        np.testing.assert_array_equal(result.reshape(-1), np.array(expected, dtype))

    def test_defaults_are_float32_and_mnists_own(self, mnist):
        (x_train, _), _ = mnist
        result = standardize_images(x_train)
        assert result.dtype == np.float32
        assert result.shape == (60000, 1, 28, 28)
        assert abs(result.mean(dtype=np.float64)) < 1e-6
        assert abs(result.std(dtype=np.float64) - 1) < 1e-6

    def test_takes_no_second_array(self, mnist):
        (x_train, _), _ = mnist
        tracemalloc.start()
        try:
            result = standardize_images(x_train)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < result.nbytes + 2**20

    def test_leaves_its_input_alone_and_takes_views(self):
        images = np.arange(24, dtype=np.uint8).reshape(4, 3, 2)
        view = images[::-2].transpose(0, 2, 1)
        view.flags.writeable = False
        result = standardize_images(view, 0, 1 / 255)
        np.testing.assert_allclose(result[:, 0], view, rtol=1e-6)

    def test_takes_no_images(self):
        assert standardize_images(np.zeros((0, 28, 28), np.uint8)).shape == (0, 1, 28, 28)

    @pytest.mark.parametrize(
        ("images", "found"),
        [
            (np.zeros((28, 28), np.uint8), "uint8 (28, 28)"),
            (np.zeros((1, 1, 1, 28, 28), np.uint8), "uint8 (1, 1, 1, 28, 28)"),
            (np.zeros((1, 28, 28), np.int8), "int8 (1, 28, 28)"),
            (np.zeros((1, 28, 28), np.float32), "float32 (1, 28, 28)"),
            ([[[0]]], "a list"),
            (None, "a NoneType"),
        ],
    )
    def test_refuses_anything_but_uint8_images(self, images, found):
        with pytest.raises(InputError) as caught:
            standardize_images(images)
        message = str(caught.value)
        assert message.startswith(f"images are {found}, where a numpy array of uint8 (N, H, W)")
        assert message.isprintable()

    @pytest.mark.parametrize(
        ("options", "match"),
        [
            ({"mean": float("nan")}, "^mean must be a finite number"),
            ({"mean": (0.1307, 0.2)}, "^mean has 2 numbers for images of 1 channel"),
            ({"std": float("inf")}, "^std must be a finite number"),
            ({"std": -1.0}, "^std must be a finite number"),
            ({"std": 0}, "^std=0 does not give finite float32"),
            ({"std": 1e-6, "dtype": "float16"}, "^std=1e-06 does not give finite float16"),
            ({"dtype": "int32"}, "^dtype must be floating-point, .* got 'int32'$"),
            ({"dtype": "complex64"}, "^dtype must be floating-point"),
            ({"dtype": "flaot32"}, "^dtype must be floating-point, .* got 'flaot32'$"),
        ],
    )
    def test_refuses_other_options(self, options, match):
        with pytest.raises(InputError, match=match):
            standardize_images(np.zeros((1, 2, 2), np.uint8), **options)
