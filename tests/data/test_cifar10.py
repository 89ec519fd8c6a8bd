import io
import tarfile

import numpy as np
import pytest

from pgu_lightning.data import CIFAR10

MEAN, STD = np.array([0.4914, 0.4822, 0.4465]).reshape(3, 1, 1), np.array([0.2470, 0.2435, 0.2616]).reshape(3, 1, 1)


@pytest.fixture
def files():
    """The six files with a few records each, and the images and labels in their order."""
    generator = np.random.default_rng(0)
    written, arrays = {}, {"train": ([], []), "test": ([], [])}
    for name, count in [(f"data_batch_{number}.bin", 4 + number) for number in range(1, 6)] + [("test_batch.bin", 7)]:
        images, labels = generator.integers(0, 256, (count, 3, 32, 32), dtype=np.uint8), generator.integers(0, 10, count, dtype=np.uint8)
        written[name] = b"".join(bytes([label]) + image.tobytes() for image, label in zip(images, labels, strict=True))
        kind = "test" if name.startswith("test") else "train"
        arrays[kind][0].extend(images)
        arrays[kind][1].extend(labels)
    return written, arrays


def put(folder, written):
    folder.mkdir(exist_ok=True)
    for name, content in written.items():
        (folder / name).write_bytes(content)


def archive(path, written):
    with tarfile.open(path, "w:gz") as tar:
        for name, content in written.items():
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


@pytest.mark.parametrize("layout", ["here", "folder", "archive"])
def test_read_back_exactly(tmp_path, files, layout):
    written, arrays = files
    if layout == "archive":
        archive(tmp_path / "cifar-10-binary.tar.gz", written | {"readme.html": b"hello", "batches.meta.txt": b"airplane\n"})
    else:
        put(tmp_path if layout == "here" else tmp_path / "cifar-10-batches-bin", written)
    data = CIFAR10(tmp_path, train_size=25, validation_size=6)
    data.setup()
    for split, kind, count in ((data.train, "train", 25), (data.validation, "train", 6), (data.test, "test", 7)):
        rows = [int(name.split("/")[1]) for name in split.ids]
        assert len(set(rows)) == len(split) == count
        for sample, row in enumerate(rows):
            image, label = split[sample]
            np.testing.assert_allclose(image.numpy(), (arrays[kind][0][row] / 255 - MEAN) / STD, atol=1e-5)
            assert label == arrays[kind][1][row]
    assert not set(data.train.ids) & set(data.validation.ids)


def test_the_root_must_be_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"data.root is not set.*cifar-10-binary.tar.gz"):
        CIFAR10()
    with pytest.raises(FileNotFoundError, match=r"data.root=.*nowhere is not a folder"):
        CIFAR10(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"data.root=.*cifar-10-binary.tar.gz"):
        CIFAR10(tmp_path)


@pytest.mark.parametrize("name", ["data_batch_1", "cifar-10-python.tar.gz", "cifar-10-batches-py/data_batch_1"])
def test_the_pickle_is_refused(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(ValueError, match=r"pickle.*is not opened.*cifar-10-binary.tar.gz"):
        CIFAR10(tmp_path)


@pytest.mark.parametrize(
    "damage",
    [lambda data: data[:-1], lambda data: b"", lambda data: bytes([10]) + data[1:], lambda data: data[:3073] + bytes([200]) + data[3074:]],
)
def test_a_damaged_file_is_named(tmp_path, files, damage):
    written, _ = files
    put(tmp_path, written | {"data_batch_3.bin": damage(written["data_batch_3.bin"])})
    with pytest.raises(ValueError, match=r"data_batch_3.bin .* is damaged.*download"):
        CIFAR10(tmp_path, train_size=5, validation_size=5).setup()


def test_missing_files_are_listed(tmp_path, files):
    written, _ = files
    del written["data_batch_2.bin"], written["test_batch.bin"]
    put(tmp_path / "cifar-10-batches-bin", written)
    with pytest.raises(FileNotFoundError, match=r"lacks data_batch_2.bin, test_batch.bin"):
        CIFAR10(tmp_path)


def test_a_damaged_archive_is_named(tmp_path, files):
    written, _ = files
    path = tmp_path / "cifar-10-binary.tar.gz"
    archive(path, written)
    whole = path.read_bytes()
    for content in (b"nothing", whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"cifar-10-binary.tar.gz is not a whole archive|cifar-10-binary.tar.gz lacks"):
            CIFAR10(tmp_path, train_size=5, validation_size=5).setup()
    del written["data_batch_4.bin"]
    archive(path, written)
    with pytest.raises(ValueError, match=r"lacks data_batch_4.bin"):
        CIFAR10(tmp_path, train_size=5, validation_size=5).setup()
