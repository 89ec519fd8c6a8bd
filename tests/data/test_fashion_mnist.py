import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from pgu_lightning.data import FashionMNIST, read_idx
from pgu_lightning.data.fashion_mnist import DEBIAN, FILES


def write_idx(path: Path, array: np.ndarray) -> None:
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    path.write_bytes(gzip.compress(header + array.astype(np.uint8).tobytes()))


@pytest.fixture
def written(tmp_path):
    """The four files with 40 training and 12 test images, and the arrays in them."""
    generator = np.random.default_rng(0)
    arrays = {}
    for prefix, count in (("train", 40), ("t10k", 12)):
        arrays[prefix] = generator.integers(0, 256, (count, 28, 28)), generator.integers(0, 10, count)
        write_idx(tmp_path / f"{prefix}-images-idx3-ubyte.gz", arrays[prefix][0])
        write_idx(tmp_path / f"{prefix}-labels-idx1-ubyte.gz", arrays[prefix][1])
    return tmp_path, arrays


def test_read_back_exactly(written):
    root, arrays = written
    data = FashionMNIST(root, train_size=25, validation_size=10)
    data.setup()
    for split, prefix, count in ((data.train, "train", 25), (data.validation, "train", 10), (data.test, "t10k", 12)):
        rows = [int(name.split("/")[1]) for name in split.ids]
        images, labels = arrays[prefix]
        assert len(set(rows)) == len(rows) == count
        np.testing.assert_array_equal(split.targets.numpy(), labels[rows])
        for sample, row in enumerate(rows):
            np.testing.assert_allclose(split[sample][0][0].numpy(), (images[row] / 255 - 0.286) / 0.353, atol=1e-5)
    assert not set(data.train.ids) & set(data.validation.ids)
    assert data.test.ids == [f"test/{row}" for row in range(12)]


def test_found_in_the_subfolder_and_independent_of_the_seed(written):
    root, _ = written
    inner = root / "fashion-mnist"
    inner.mkdir()
    for name in FILES:
        (root / name).rename(inner / name)
    digests = set()
    for seed in (0, 1):
        data = FashionMNIST(str(root), train_size=30, validation_size=10, seed=seed)
        data.setup()
        digests.add(data.digest())
    assert len(digests) == 1


def test_sizes_beyond_the_file_are_refused(written):
    with pytest.raises(ValueError, match=r"data.train_size=35 and data.validation_size=6 .* at most 40"):
        FashionMNIST(written[0], train_size=35, validation_size=6).setup()


def test_missing_files_say_how_to_get_them(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"apt-get install dataset-fashion-mnist.*train-images-idx3-ubyte.gz.*under data.root"):
        FashionMNIST(tmp_path)


@pytest.mark.parametrize("shape", [(7,), (2, 3), (2, 3, 4), (0, 5)])
def test_read_idx(tmp_path, shape):
    array = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    write_idx(tmp_path / "a.gz", array)
    np.testing.assert_array_equal(read_idx(tmp_path / "a.gz"), array)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no gzip at all", "not a whole gzip file"),
        (gzip.compress(bytes(range(200)) * 50)[:100], "not a whole gzip file"),
        (gzip.compress(b""), "starts with nothing"),
        (gzip.compress(b"\x00\x00\x0d\x01" + struct.pack(">I", 2) + bytes(8)), "starts with 00000d01"),
        (gzip.compress(b"\x00\x00\x08\x02" + struct.pack(">I", 2)), "announces 2 dimensions"),
        (gzip.compress(b"\x00\x00\x08\x01" + struct.pack(">I", 5) + bytes(4)), r"announces 1 dimensions \(5,\), and has 4 bytes"),
        (gzip.compress(b"\x00\x00\x08\x01" + struct.pack(">I", 5) + bytes(6)), "has 6 bytes"),
    ],
)
def test_damaged_files_are_named(tmp_path, content, message):
    path = tmp_path / "damaged.gz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        read_idx(path)
    assert str(path) in str(error.value)


def test_a_flipped_byte_is_noticed(tmp_path):
    write_idx(tmp_path / "a.gz", np.random.default_rng(0).integers(0, 256, 1000, dtype=np.uint8))
    data = bytearray((tmp_path / "a.gz").read_bytes())
    data[500] ^= 1
    (tmp_path / "a.gz").write_bytes(data)
    with pytest.raises(ValueError, match=r"a.gz"):
        read_idx(tmp_path / "a.gz")


@pytest.mark.parametrize(("labels", "size"), [([3] * 39, 28), ([10] * 40, 28), ([3] * 40, 27)])
def test_files_that_do_not_belong_together_are_refused(written, labels, size):
    root, _ = written
    write_idx(root / "train-labels-idx1-ubyte.gz", np.array(labels))
    write_idx(root / "train-images-idx3-ubyte.gz", np.zeros((40, size, size)))
    with pytest.raises(ValueError, match=r"train-\*.* are not Fashion-MNIST"):
        FashionMNIST(root, train_size=20, validation_size=5).setup()


@pytest.mark.skipif(not all((DEBIAN / name).is_file() for name in FILES), reason="needs Debian's package dataset-fashion-mnist")
def test_the_real_files():
    images, labels = read_idx(DEBIAN / FILES[0]), read_idx(DEBIAN / FILES[1])
    assert images.shape == (60000, 28, 28)
    assert labels[0] == 9
    assert np.bincount(labels).tolist() == [6000] * 10
    data = FashionMNIST(train_size=500, validation_size=100)
    data.setup()
    assert [len(split) for split in (data.train, data.validation, data.test)] == [500, 100, 10000]
    assert torch.bincount(data.test.targets).tolist() == [1000] * 10
    pixels = torch.stack([data.train[row][0] for row in range(500)])
    assert abs(pixels.mean().item()) < 0.1
    assert abs(pixels.std().item() - 1) < 0.1
