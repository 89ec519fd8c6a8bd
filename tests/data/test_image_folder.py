from collections import Counter

import numpy as np
import pytest
from PIL import Image

from pgu_lightning.data import ImageFolder

COUNTS = {"cat": 20, "dog": 10, "owl": 3}


def save(path, seed, size=(16, 16), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)).convert(mode).save(path)


@pytest.fixture
def flat(tmp_path):
    for name, count in COUNTS.items():
        for number in range(count):
            save(tmp_path / name / f"{number}.png", 100 * len(name) + number)
        (tmp_path / name / "notes.txt").write_text("no image")
    return tmp_path


def test_read_back_exactly_and_split_by_class(flat):
    data = ImageFolder(flat, size=16, validation_fraction=0.1, test_fraction=0.2)
    assert (data.class_names, data.shape) == (("cat", "dog", "owl"), (3, 16, 16))
    data.setup()
    splits = (data.train, data.validation, data.test)
    assert [Counter(split.targets.tolist()) for split in splits] == [{0: 14, 1: 7, 2: 1}, {0: 2, 1: 1, 2: 1}, {0: 4, 1: 2, 2: 1}]
    assert len({name for split in splits for name in split.ids}) == sum(COUNTS.values())
    for split in splits:
        for sample, name in enumerate(split.ids):
            image, label = split[sample]
            pixels = np.asarray(Image.open(flat / name)).transpose(2, 0, 1)
            np.testing.assert_allclose(image.numpy(), pixels / 127.5 - 1, atol=1e-5)
            assert name.split("/")[0] == data.class_names[label]


def test_the_split_depends_on_split_seed_alone(flat):
    def names(**common):
        data = ImageFolder(flat, **common)
        data.setup()
        return [split.ids for split in (data.train, data.validation, data.test)]

    assert names(seed=0) == names(seed=1)
    assert names(split_seed=1) != names()


def test_other_sizes_and_modes_become_rgb_of_one_size(tmp_path):
    for number, (size, mode) in enumerate([((9, 30), "L"), ((40, 16), "RGBA"), ((8, 8), "P"), ((16, 16), "RGB")]):
        for name in "ab":
            save(tmp_path / name / f"{number}.png", number, size, mode)
    data = ImageFolder(tmp_path, size=16)
    data.setup()
    assert {tuple(split[row][0].shape) for split in (data.train, data.validation, data.test) for row in range(len(split))} == {(3, 16, 16)}


def test_folders_that_are_split_already(tmp_path):
    for split, count in (("train", 4), ("val", 2), ("test", 1)):
        for name in ("a", "b"):
            for number in range(count):
                save(tmp_path / split / name / f"{number}.jpg", number)
    data = ImageFolder(tmp_path, size=16)
    data.setup()
    assert data.validation.ids == ["val/a/0.jpg", "val/a/1.jpg", "val/b/0.jpg", "val/b/1.jpg"]
    assert [split.targets.tolist() for split in (data.train, data.validation, data.test)] == [[0] * 4 + [1] * 4, [0, 0, 1, 1], [0, 1]]


def test_digest_sees_the_files(flat):
    def digest():
        data = ImageFolder(flat)
        data.setup()
        return data.digest()

    before = digest()
    assert digest() == before
    save(flat / "cat" / "3.png", 12345)
    assert digest() != before


def test_errors_say_what_is_missing(tmp_path, flat):
    with pytest.raises(FileNotFoundError, match=r"data.root is not set"):
        ImageFolder()
    empty = tmp_path / "empty"
    (empty / "only").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"1 class folders \['only'\], at least 2"):
        ImageFolder(empty)
    (empty / "only").rmdir()
    with pytest.raises(ValueError, match=r"0 class folders"):
        ImageFolder(empty)
    empty.rmdir()
    (flat / "cow").mkdir()
    save(flat / "ant" / "0.png", 0)
    with pytest.raises(ValueError, match=r"at least 3 images.*ant has 1; .*cow has 0"):
        ImageFolder(flat)


@pytest.mark.parametrize("fractions", [(0.0, 0.2), (0.5, 0.5), (0.1, -0.1)])
def test_fractions_that_leave_nothing_are_refused(flat, fractions):
    with pytest.raises(ValueError, match=r"validation_fraction and data.test_fraction"):
        ImageFolder(flat, validation_fraction=fractions[0], test_fraction=fractions[1])


@pytest.mark.parametrize("fractions", [(0.45, 0.5), (0.9, 0.05), (0.05, 0.9)])
def test_large_fractions_of_small_classes_leave_a_training_image(tmp_path, fractions):
    for name in ("a", "b"):
        for number in range(3):
            save(tmp_path / name / f"{number}.png", number)
    data = ImageFolder(tmp_path, validation_fraction=fractions[0], test_fraction=fractions[1])
    data.setup()
    assert [sorted(split.targets.tolist()) for split in (data.train, data.validation, data.test)] == [[0, 1]] * 3


def test_a_partly_split_folder_is_refused(tmp_path):
    save(tmp_path / "train" / "a" / "0.png", 0)
    save(tmp_path / "train" / "b" / "0.png", 0)
    with pytest.raises(FileNotFoundError, match=r"has a folder train, but not .*val, .*test"):
        ImageFolder(tmp_path)
    save(tmp_path / "val" / "a" / "0.png", 0)
    save(tmp_path / "test" / "a" / "0.png", 0)
    save(tmp_path / "test" / "b" / "0.png", 0)
    with pytest.raises(ValueError, match=r"val/b has 0"):
        ImageFolder(tmp_path)


def test_unreadable_files_are_all_named_before_training(flat):
    (flat / "cat" / "2.png").write_bytes(b"no image")
    damaged = bytearray((flat / "dog" / "4.png").read_bytes())
    damaged[-30] ^= 255
    (flat / "dog" / "4.png").write_bytes(damaged)
    with pytest.raises(ValueError, match=r"2 files cannot be read") as error:
        ImageFolder(flat).setup()
    assert "cat/2.png" in str(error.value)
    assert "dog/4.png" in str(error.value)
