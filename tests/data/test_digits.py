import numpy as np
from sklearn.datasets import load_digits

from pgu_lightning.data import Digits


def test_digits_are_scikit_learns_stratified():
    data = Digits()
    data.setup()
    images, labels = load_digits(return_X_y=True)
    splits = (data.train, data.validation, data.test)
    assert [len(split) for split in splits] == [1200, 150, 447]
    assert sorted(int(name) for split in splits for name in split.ids) == list(range(1797))
    for split in splits:
        rows = [int(name) for name in split.ids]
        np.testing.assert_array_equal(split.images.numpy(), (images[rows] / 16).reshape(-1, 1, 8, 8).astype(np.float32))
        np.testing.assert_array_equal(split.targets.numpy(), labels[rows])
        expected = np.bincount(labels) * len(rows) / 1797
        assert np.abs(np.bincount(split.targets.numpy()) - expected).max() <= 1
