import inspect
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pgu_lightning.models import MLP, AllCNN, ResNet18, SmallCNN, SmallVGG, ViT

NETWORKS = [SmallCNN, MLP, SmallVGG, AllCNN, ResNet18, ViT]
SHAPES = [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 64, 64)]


def size(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def conv(inputs: int, outputs: int, kernel: int, bias: bool = True) -> int:
    return inputs * outputs * kernel**2 + bias * outputs


def linear(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("build", NETWORKS)
def test_logits_of_each_image_alone(build, shape):
    """In eval mode the logits are (N, classes), finite, and do not depend on what else is in the batch."""
    torch.manual_seed(0)
    narrow = {"widths": (8, 12, 16)} if build is SmallVGG else {"width": 0.1} if build is AllCNN else {}
    network = build(shape, 7, **narrow).eval()
    images = torch.randn(3, *shape)
    with torch.no_grad():
        logits = network(images)
        alone = torch.cat([network(image[None]) for image in images])
    assert logits.shape == (3, 7)
    torch.testing.assert_close(logits, alone, atol=1e-4, rtol=1e-4)
    assert logits.std(dim=0).min() > 1e-6  # no logit is constant over the images


@pytest.mark.parametrize("build", [build for build in NETWORKS if build is not ViT])  # attention never calls its layers
def test_hooks_see_each_weight_bearing_layer_once(build):
    network = build((3, 16, 16), 5).eval()
    layers = [module for module in network.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    calls = []
    for layer in layers:
        layer.register_forward_pre_hook(lambda module, inputs: calls.append(module))
    with torch.no_grad():
        network(torch.randn(2, 3, 16, 16))
    assert calls
    assert len(calls) == len(layers) == len(set(calls))
    covered = {id(parameter) for layer in layers for parameter in layer.parameters()}
    norms = {id(parameter) for layer in network.modules() if isinstance(layer, nn.BatchNorm2d) for parameter in layer.parameters()}
    assert {id(parameter) for parameter in network.parameters()} == covered | norms
    assert not any(getattr(module, "inplace", False) for module in network.modules())


def test_parameter_counts():
    batchnorm = 2
    assert size(MLP((1, 28, 28), 10, hidden=(256, 128))) == linear(784, 256) + linear(256, 128) + linear(128, 10)
    assert size(SmallCNN((1, 28, 28), 10)) == (
        conv(1, 16, 3) + conv(16, 32, 3) + conv(32, 64, 3) + batchnorm * (16 + 32 + 64) + linear(64 * 3 * 3, 128) + linear(128, 10)
    )
    vgg = sum(conv(a, b, 3) + batchnorm * b for a, b in pairwise([3, 128, 128, 256, 256, 512, 512]))
    assert size(SmallVGG((3, 32, 32), 10, hidden=(256,))) == vgg + linear(8192, 256) + linear(256, 10)
    assert size(SmallVGG((3, 32, 32), 10, hidden=())) == vgg + linear(8192, 10)
    assert size(AllCNN((3, 32, 32), 10)) == 1_369_738
    assert size(AllCNN((1, 28, 28), 10, width=0.25)) == (
        conv(1, 24, 3) + 2 * conv(24, 24, 3) + conv(24, 48, 3) + 3 * conv(48, 48, 3) + conv(48, 48, 1) + conv(48, 10, 1)
    )
    assert size(ResNet18((3, 224, 224), 1000)) == 11_689_512
    assert size(ResNet18((3, 32, 32), 1000, small_stem=True)) == 11_689_512 - 64 * 3 * (49 - 9)
    assert [size(ResNet18((3, 32, 32), 10, widths=(16, 32, 64, 128)).layer4), size(ResNet18((3, 32, 32), 10).layer4[1])] == [
        sum(conv(a, 128, 3, bias=False) for a in (64, 128, 128, 128)) + conv(64, 128, 1, bias=False) + batchnorm * 128 * 5,
        2 * (conv(512, 512, 3, bias=False) + batchnorm * 512),
    ]


def test_all_cnn_halves_the_image_twice():
    network = AllCNN((3, 32, 32), 10, width=0.1).eval()
    assert network.features(torch.zeros(1, 3, 32, 32)).shape == (1, 10, 8, 8)


def test_resnet18_has_torchvisions_names_and_shapes():
    def norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
        return {f"{name}.{part}": (width,) for part in ("weight", "bias", "running_mean", "running_var")} | {
            f"{name}.num_batches_tracked": ()
        }

    expected = {"conv1.weight": (64, 3, 7, 7)} | norm("bn1", 64)
    source = 64
    for layer, width in enumerate([64, 128, 256, 512], start=1):
        for block in (0, 1):
            name = f"layer{layer}.{block}"
            expected |= {f"{name}.conv1.weight": (width, source, 3, 3)} | norm(f"{name}.bn1", width)
            expected |= {f"{name}.conv2.weight": (width, width, 3, 3)} | norm(f"{name}.bn2", width)
            if source != width:
                expected |= {f"{name}.downsample.0.weight": (width, source, 1, 1)} | norm(f"{name}.downsample.1", width)
            source = width
    expected |= {"fc.weight": (10, 512), "fc.bias": (10,)}
    state = ResNet18((3, 64, 64), 10).state_dict()
    assert {name: tuple(value.shape) for name, value in state.items()} == expected
    assert list(state) == list(expected)


@pytest.mark.ecosystem
def test_resnet18_computes_what_torchvisions_does():
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    theirs = torchvision.models.resnet18(num_classes=10).eval()
    ours = ResNet18((3, 64, 64), 10).eval()
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(ours(images), theirs(images), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("small_stem", [False, True])
def test_resnet18_stem(small_stem):
    network = ResNet18((3, 64, 64), 10, small_stem=small_stem).eval()
    seen = []
    network.layer1.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape[2:]))
    network(torch.zeros(1, 3, 64, 64))
    assert seen == [torch.Size([64, 64] if small_stem else [16, 16])]


def test_a_residual_block_without_its_branch_is_its_shortcut():
    network = ResNet18((3, 8, 8), 10).eval()
    for block, inputs in ((network.layer1[0], 64), (network.layer2[0], 64)):
        torch.nn.init.zeros_(block.bn2.weight)
        x = torch.randn(2, inputs, 8, 8)
        expected = x if block.downsample is None else block.downsample(x)
        torch.testing.assert_close(block(x), expected.clamp(min=0))


@pytest.mark.parametrize(("build", "dropped"), [(SmallVGG, 4), (AllCNN, 2)])
def test_dropout_is_off_unless_asked_for(build, dropped):
    assert {module.p for module in build((1, 8, 8), 4).modules() if isinstance(module, nn.Dropout)} == {0.0}
    assert [module.p for module in build((1, 8, 8), 4, dropout=0.5).modules() if isinstance(module, nn.Dropout)] == [0.5] * dropped


@pytest.mark.parametrize("build", [SmallCNN, SmallVGG])
@settings(max_examples=15, deadline=None)
@given(height=st.integers(1, 20), width=st.integers(1, 20))
def test_images_smaller_than_the_pooling_are_refused(build, height, width):
    small = {"widths": (4, 4, 4), "hidden": 8 if build is SmallCNN else (8,)}
    if min(height, width) < 8:
        with pytest.raises(ValueError, match=f"at least 8 x 8 pixels, got {height} x {width}"):
            build((1, height, width), 3, **small)
    else:
        assert build((1, height, width), 3, **small).eval()(torch.zeros(1, 1, height, width)).shape == (1, 3)


@pytest.mark.parametrize("build", NETWORKS)
def test_shape_and_num_classes_come_first(build):
    assert list(inspect.signature(build).parameters)[:2] == ["shape", "num_classes"]


def test_patches_that_do_not_tile_the_image_are_refused():
    with pytest.raises(ValueError, match="patches of 5 x 5 do not tile images of 28 x 28"):
        ViT((1, 28, 28), 10, patch=5)


def test_a_token_is_a_patch():
    """Without position and blocks the answer is a function of the patches' mean alone, so their order does not matter."""
    torch.manual_seed(0)
    network = ViT((1, 8, 8), 3, patch=4, width=8, depth=0).eval()
    torch.nn.init.zeros_(network.position)
    image = torch.randn(1, 1, 8, 8)
    swapped = image.roll(4, dims=3)
    torch.testing.assert_close(network(image), network(swapped))
    assert not torch.allclose(network(image), network(image.roll(1, dims=3)))
