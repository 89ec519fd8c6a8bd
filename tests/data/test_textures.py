import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgu_lightning.data import Textures


def test_deterministic_in_the_arguments():
    def digest(**changes):
        data = Textures(**{"shape": (2, 9, 7), "num_classes": 3, "train_size": 20, "validation_size": 5, "test_size": 6, **changes})
        data.setup()
        return data.digest()

    assert digest() == digest() == digest(seed=3)
    changed = [digest(split_seed=1), digest(overlap=0.1), digest(noise=0.1), digest(train_size=21), digest(num_classes=4)]
    assert len({digest(), *changed}) == 6


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 4), st.integers(1, 20), st.integers(1, 20), st.integers(2, 5), st.integers(1, 1500))
def test_any_size(channels, height, width, classes, train_size):
    data = Textures((channels, height, width), classes, train_size=train_size, validation_size=2, test_size=3, split_seed=1)
    data.setup()
    assert data.train.images.shape == (train_size, channels, height, width)
    assert [len(split) for split in (data.train, data.validation, data.test)] == [train_size, 2, 3]
    assert 0 <= data.train.targets.min() <= data.train.targets.max() < classes == data.num_classes
    assert data.train.images.isfinite().all()


def test_each_class_lies_in_its_own_few_gratings():
    """Without noise or overlap, a class's images span twice the number of gratings: a cosine and a sine for each."""
    data = Textures((1, 16, 16), num_classes=2, train_size=400, validation_size=1, test_size=1, overlap=0.0, noise=0.0)
    data.setup()
    images, targets = data.train.images.flatten(1).double().numpy(), data.train.targets.numpy()
    ranks = [np.linalg.matrix_rank(images[targets == label], tol=1e-2) for label in (0, 1)]
    assert ranks == [8, 8]
    assert np.linalg.matrix_rank(images, tol=1e-2) == 16


def test_overlap_mixes_the_other_class_in():
    pure, mixed = (
        Textures((1, 16, 16), 2, train_size=400, validation_size=1, test_size=1, overlap=overlap, noise=0.0) for overlap in (0.0, 0.6)
    )
    pure.setup()
    mixed.setup()
    basis = np.linalg.svd(pure.train.images[pure.train.targets == 0].flatten(1).double().numpy())[2][:8]
    images = mixed.train.images[mixed.train.targets == 0].flatten(1).double().numpy()
    outside = images - images @ basis.T @ basis
    share = (outside**2).sum() / (images**2).sum()
    assert 0.02 < share < 0.5


@pytest.mark.parametrize("wrong", [{"num_classes": 1}, {"overlap": 1.5}, {"overlap": -0.1}])
def test_impossible_arguments_are_refused(wrong):
    with pytest.raises(ValueError, match=r"data.num_classes >= 2 and data.overlap in \[0, 1\]"):
        Textures(**wrong)
