import numpy as np
import pytest
from PIL import Image

from pgu_lightning.data import TinyImageNet

MEAN, STD = np.array([0.480, 0.448, 0.398]).reshape(3, 1, 1), np.array([0.277, 0.269, 0.282]).reshape(3, 1, 1)
WNIDS = ["n02", "n01", "n03"]  # the labels follow this order, not the alphabet


@pytest.fixture
def root(tmp_path):
    """The official tree with 5 training and 2 validation images a class; one of them grey."""
    generator = np.random.default_rng(0)
    folder = tmp_path / "tiny-imagenet-200"
    (folder / "val" / "images").mkdir(parents=True)
    (folder / "wnids.txt").write_text("\n".join(WNIDS) + "\n")
    (folder / "words.txt").write_text("n01\tgoldfish, Carassius auratus\nn02\tEuropean fire salamander, Salamandra\nn99\tother\n")
    lines = []
    for wnid in WNIDS:
        images = folder / "train" / wnid / "images"
        images.mkdir(parents=True)
        (images.parent / f"{wnid}_boxes.txt").write_text("ignored")
        for number in range(5):
            shape = (64, 64) if number == 0 else (64, 64, 3)
            Image.fromarray(generator.integers(0, 256, shape, dtype=np.uint8)).save(images / f"{wnid}_{number}.JPEG")
    for number, wnid in enumerate(["n03", "n02", "n01", "n01", "n03", "n02"]):
        Image.fromarray(generator.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(folder / "val" / "images" / f"val_{number}.JPEG")
        lines.append(f"val_{number}.JPEG\t{wnid}\t0\t0\t62\t62\n")
    (folder / "val" / "val_annotations.txt").write_text("".join(lines))
    return tmp_path


def test_read_back_exactly(root):
    data = TinyImageNet(root, train_size=11, validation_size=4)
    assert data.class_names == ("European fire salamander", "goldfish", "n03")
    data.setup()
    assert data.test.targets.tolist() == [2, 0, 1, 1, 2, 0]
    assert data.test.ids == [f"val/images/val_{number}.JPEG" for number in range(6)]
    assert len({*data.train.ids, *data.validation.ids}) == 15
    for split in (data.train, data.validation, data.test):
        for sample, name in enumerate(split.ids):
            image, label = split[sample]
            pixels = np.asarray(Image.open(root / "tiny-imagenet-200" / name).convert("RGB")).transpose(2, 0, 1)
            np.testing.assert_allclose(image.numpy(), (pixels / 255 - MEAN) / STD, atol=1e-5)
            assert name.startswith("val") or name.split("/")[1] == WNIDS[label]


def test_the_folder_itself_is_a_root_and_the_seed_changes_nothing(root):
    digests = set()
    for place, seed in ((root, 0), (root / "tiny-imagenet-200", 1)):
        data = TinyImageNet(place, train_size=10, validation_size=5, seed=seed)
        data.setup()
        digests.add(data.digest())
    assert len(digests) == 1


def test_missing_parts_are_listed(tmp_path, root):
    with pytest.raises(FileNotFoundError, match=r"data.root is not set"):
        TinyImageNet()
    (root / "tiny-imagenet-200" / "words.txt").unlink()
    (root / "tiny-imagenet-200" / "val" / "val_annotations.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks words.txt, val/val_annotations.txt: data.root"):
        TinyImageNet(root)


def test_a_missing_class_is_named(root):
    train = root / "tiny-imagenet-200" / "train"
    (train / "n01").rename(train / "elsewhere")
    with pytest.raises(FileNotFoundError, match=r"1 classes .*n01"):
        TinyImageNet(root, train_size=5, validation_size=5).setup()


@pytest.mark.parametrize("line", ["val_9.JPEG\tn01\t0\t0\t1\t1", "val_0.JPEG\tn77\t0", "val_0.JPEG"])
def test_wrong_annotations_are_numbered(root, line):
    path = root / "tiny-imagenet-200" / "val" / "val_annotations.txt"
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(ValueError, match=r"1 lines have not \(first: \[7\]\)"):
        TinyImageNet(root, train_size=5, validation_size=5).setup()


def test_a_damaged_image_is_named(root):
    data = TinyImageNet(root, train_size=10, validation_size=5)
    data.setup()
    data.train.paths[3].write_bytes(data.train.paths[3].read_bytes()[:300])
    with pytest.raises(ValueError, match=r"cannot be read as an image") as error:
        data.train[3]
    assert data.train.ids[3] in str(error.value)
