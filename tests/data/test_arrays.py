import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pgu_lightning.data import ArrayDataset, Digits, ImageData, Normalize, Textures
from pgu_lightning.data.arrays import carve


class Tiny(ImageData):
    """Images whose every pixel is the number of the sample."""

    def __init__(self, count: int = 60, **common):
        super().__init__(class_names=["a", "b", "c"], shape=(1, 2, 2), **common)
        self.count = count
        self.loaded = 0

    def splits(self):
        self.loaded += 1
        images = torch.arange(self.count).float().view(-1, 1, 1, 1).expand(-1, 1, 2, 2)
        return tuple(ArrayDataset(images + shift, torch.arange(self.count) % 3) for shift in (0, 1000, 2000))


def test_uint8_is_scaled_and_normalised_when_read():
    stored = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (5, 3, 4, 6), dtype=np.uint8))
    data = ArrayDataset(stored, torch.arange(5), ids=list("abcde"), transform=Normalize([0.1, 0.2, 0.3], [0.5, 0.6, 0.7]))
    image, label = data[3]
    expected = (stored[3].numpy() / 255 - np.array([0.1, 0.2, 0.3]).reshape(3, 1, 1)) / np.array([0.5, 0.6, 0.7]).reshape(3, 1, 1)
    np.testing.assert_allclose(image.numpy(), expected, atol=1e-6)
    assert (image.dtype, label, type(label), data.ids, len(data)) == (torch.float32, 3, int, list("abcde"), 5)


@pytest.mark.parametrize(
    ("images", "targets", "ids", "message"),
    [
        (torch.zeros(3, 1, 2, 2), torch.zeros(2), None, "3 images, 2 targets"),
        (torch.zeros(3, 1, 2, 2), torch.zeros(3), ["a"], "3 targets, 1 ids"),
        (torch.zeros(3, 2, 2), torch.zeros(3), None, r"\(3, 2, 2\)"),
        (torch.zeros(3, 1, 2, 2, dtype=torch.float64), torch.zeros(3), None, "float64"),
    ],
)
def test_inconsistent_arrays_are_refused(images, targets, ids, message):
    with pytest.raises(ValueError, match=message):
        ArrayDataset(images, targets, ids)


def test_setup_loads_once_and_the_rest_is_known_before():
    data = Tiny(poison=5)
    assert (data.num_classes, data.shape, data.class_names, data.loaded) == (3, (1, 2, 2), ("a", "b", "c"), 0)
    data.setup("fit")
    train, poisoned = data.train, data.poisoned
    data.setup("test")
    assert data.loaded == 1
    assert data.train is train
    assert data.poisoned is poisoned


@settings(max_examples=30, deadline=None)
@given(poison=st.integers(0, 60), seed=st.integers(0, 2**31))
def test_poisoned_labels_are_all_wrong_and_no_others_change(poison, seed):
    before = torch.get_rng_state()
    data, again = Tiny(poison=poison, seed=seed), Tiny(poison=poison, seed=seed)
    data.setup()
    again.setup()
    assert torch.equal(torch.get_rng_state(), before)

    truth = np.arange(60) % 3
    given_labels = data.train.targets.numpy()
    assert sorted(np.flatnonzero(given_labels != truth).tolist()) == data.poisoned.tolist()
    assert len(data.poisoned) == poison
    assert data.poisoned.dtype == torch.int64
    assert data.clean_targets.tolist() == truth[data.poisoned.numpy()].tolist()
    assert set(given_labels.tolist()) <= {0, 1, 2}
    assert torch.equal(data.train.targets, again.train.targets)


def test_poison_depends_on_the_seed_and_takes_every_wrong_class():
    first, second = (Tiny(count=300, poison=100, seed=seed) for seed in (0, 1))
    first.setup()
    second.setup()
    assert first.poisoned.tolist() != second.poisoned.tolist()
    pairs = {
        (truth, first.train.targets[row].item()) for row, truth in zip(first.poisoned.tolist(), first.clean_targets.tolist(), strict=True)
    }
    assert pairs == {(a, b) for a in range(3) for b in range(3) if a != b}


def test_more_poison_than_samples_is_refused():
    with pytest.raises(ValueError, match=r"data.poison=61, but there are 60 training samples"):
        Tiny(poison=61).setup()
    with pytest.raises(ValueError, match=r"data.poison .* got -1"):
        Tiny(poison=-1)


def test_only_the_training_loader_shuffles():
    data = Tiny(batch_size=16)
    data.setup()
    order = {
        name: torch.cat([images[:, 0, 0, 0] for images, _ in getattr(data, f"{name}_dataloader")()]).tolist()
        for name in ("train", "val", "test")
    }
    assert order["train"] != sorted(order["train"])
    assert sorted(order["train"]) == list(range(60))
    assert order["val"] == [1000 + row for row in range(60)]
    assert order["test"] == [2000 + row for row in range(60)]
    assert [len(labels) for _, labels in data.val_dataloader()] == [16, 16, 16, 12]


def test_digest_sees_pixels_labels_and_transforms():
    def digest(change=lambda data: None, **common):
        data = Tiny(**common)
        data.setup()
        change(data)
        return data.digest()

    def pixel(data):
        data.validation.images = data.validation.images.clone()
        data.validation.images[7, 0, 1, 1] += 1

    def label(data):
        data.test.targets[2] = 0

    def transform(data):
        data.train.transform = Normalize([0.0], [1.0])

    def other(data):
        data.train.transform = Normalize([0.0], [2.0])

    digests = [digest(), digest(pixel), digest(label), digest(transform), digest(other), digest(poison=1), digest(poison=1, seed=1)]
    assert len(set(digests)) == len(digests)
    assert digest() == digests[0]
    assert digest(seed=5) == digests[0]


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 50).flatmap(lambda count: st.tuples(st.just(count), st.integers(1, count - 1))), st.data())
def test_carve(sizes, draw):
    count, validation_size = sizes
    train_size = draw.draw(st.integers(1, count - validation_size))
    train, validation = carve(count, train_size, validation_size, split_seed=3)
    assert len(set(train.tolist())) == train_size
    assert len(set(validation.tolist())) == validation_size
    assert not set(train.tolist()) & set(validation.tolist())
    assert {*train.tolist(), *validation.tolist()} <= set(range(count))
    largest, same = carve(count, count - validation_size, validation_size, split_seed=3)
    assert torch.equal(same, validation)
    assert torch.equal(largest[:train_size], train)


@pytest.mark.parametrize(("train_size", "validation_size"), [(8, 3), (0, 3), (3, 0), (-1, 5)])
def test_carve_refuses_sizes_that_do_not_fit(train_size, validation_size):
    with pytest.raises(ValueError, match=r"data\.train_size=.*data\.validation_size=.*at most 10"):
        carve(10, train_size, validation_size, split_seed=0)


@pytest.mark.parametrize(
    "build", [Digits, lambda **common: Textures(shape=(1, 8, 8), train_size=100, validation_size=30, test_size=40, **common)]
)
def test_splits_are_disjoint_and_do_not_depend_on_the_seed(build):
    def rows(**common):
        data = build(**common)
        data.setup()
        return [[image.numpy().tobytes() for image in split.images] for split in (data.train, data.validation, data.test)], data.digest()

    first, digest = rows(seed=0)
    other_seed, same_digest = rows(seed=7)
    assert first == other_seed
    assert digest == same_digest
    assert rows(split_seed=1)[1] != digest
    train, validation, test = map(set, first)
    assert not train & validation
    assert not train & test
    assert not validation & test
