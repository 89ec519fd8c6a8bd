from __future__ import annotations

import torch

from pgu_lightning.models import CropFlip


def test_each_image_is_a_shift_of_itself_mirrored_or_not():
    torch.manual_seed(0)
    images = torch.rand(200, 2, 5, 4)
    seen = set()
    for image, found in zip(images, CropFlip(1)(images), strict=True):
        padded = torch.zeros(2, 7, 6)
        padded[:, 1:6, 1:5] = image
        views = {(down, right): padded[:, down : down + 5, right : right + 4] for down in range(3) for right in range(3)}
        match = [
            (*shift, mirrored)
            for shift, view in views.items()
            for mirrored in (False, True)
            if torch.equal(view.flip(2) if mirrored else view, found)
        ]
        assert len(match) == 1
        seen.add(match[0])
    assert len(seen) == 18  # every shift, both ways
