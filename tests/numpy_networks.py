"""The published architectures forward and backward, and the published steps on them, in float64 NumPy from the formulas alone.

Weights and what normalisation knows come from a state dict of arrays, under the names that PyTorch gives them. Nothing of the package or of
torch is used here.
"""

from __future__ import annotations

import numpy as np
from scipy.special import softmax

from tests.oracles import protected_count

# Layers: ``forward(state, x)`` keeps what ``backward(state, slope, gradients)`` needs; that returns the slope at x. ``rows``: what a layer
# multiplied its weight with, (rows, dim).


class Conv:
    def __init__(self, name, stride=1, padding=0):
        self.name, self.stride, self.padding = name, stride, padding

    def taps(self, x, weight):
        """For each tap of the kernel a view of the pixels that it meets, (batch, channels, height, width)."""
        size = [(n - k) // self.stride + 1 for n, k in zip(x.shape[2:], weight.shape[2:], strict=True)]
        for i, j in np.ndindex(*weight.shape[2:]):
            place = [slice(start, start + self.stride * (n - 1) + 1, self.stride) for start, n in zip((i, j), size, strict=True)]
            yield (i, j), x[(slice(None), slice(None), *place)]

    def forward(self, state, x):
        weight = state[f"{self.name}.weight"]
        self.x = np.pad(x, [(0, 0), (0, 0), *[(self.padding, self.padding)] * 2])
        out = sum(np.einsum("oc,nchw->nohw", weight[:, :, i, j], pixels) for (i, j), pixels in self.taps(self.x, weight))
        return out + state.get(f"{self.name}.bias", np.zeros(len(weight)))[:, None, None]

    def backward(self, state, slope, gradients):
        weight = state[f"{self.name}.weight"]
        gradients[self.name], down = np.zeros_like(weight), np.zeros_like(self.x)
        for ((i, j), pixels), (_, below) in zip(self.taps(self.x, weight), self.taps(down, weight), strict=True):
            gradients[self.name][:, :, i, j] = np.einsum("nohw,nchw->oc", slope, pixels)
            below += np.einsum("oc,nohw->nchw", weight[:, :, i, j], slope)
        edge = self.padding
        return down[:, :, edge : down.shape[2] - edge, edge : down.shape[3] - edge]

    def rows(self, state):
        patches = np.stack([pixels for _, pixels in self.taps(self.x, state[f"{self.name}.weight"])], 2)  # (batch, channels, taps, ...)
        return np.moveaxis(patches, (3, 4), (1, 2)).reshape(-1, patches.shape[1] * patches.shape[2])


class Linear:
    def __init__(self, name):
        self.name = name

    def forward(self, state, x):
        self.x = x
        return x @ state[f"{self.name}.weight"].T + state[f"{self.name}.bias"]

    def backward(self, state, slope, gradients):
        gradients[self.name] = slope.T @ self.x
        return slope @ state[f"{self.name}.weight"]

    def rows(self, state):
        return self.x


class Norm:
    """Batch normalisation by the running statistics."""

    def __init__(self, name):
        self.name = name

    def forward(self, state, x):
        mean, variance, weight, bias = (
            state[f"{self.name}.{part}"][:, None, None] for part in ("running_mean", "running_var", "weight", "bias")
        )
        self.factor = weight / np.sqrt(variance + 1e-5)
        return (x - mean) * self.factor + bias

    def backward(self, state, slope, gradients):
        return slope * self.factor


class ReLU:
    def forward(self, state, x):
        self.on = x > 0
        return x * self.on

    def backward(self, state, slope, gradients):
        return slope * self.on


class MaxPool:
    def __init__(self, size, stride, padding=0):
        self.size, self.stride, self.padding = size, stride, padding

    def windows(self, shape):
        for place in np.ndindex(*[(n - self.size) // self.stride + 1 for n in shape[2:]]):
            yield place, tuple(slice(self.stride * i, self.stride * i + self.size) for i in place)

    def forward(self, state, x):
        x = np.pad(x, [(0, 0), (0, 0), *[(self.padding, self.padding)] * 2], constant_values=-np.inf)
        out = np.zeros((*x.shape[:2], *[(n - self.size) // self.stride + 1 for n in x.shape[2:]]))
        self.where = np.zeros(out.shape, int)
        for place, window in self.windows(x.shape):
            flat = x[(slice(None), slice(None), *window)].reshape(*x.shape[:2], -1)
            out[(..., *place)], self.where[(..., *place)] = flat.max(-1), flat.argmax(-1)
        self.shape = x.shape
        return out

    def backward(self, state, slope, gradients):
        down = np.zeros(self.shape)
        for place, window in self.windows(self.shape):
            chosen = np.arange(self.size**2) == self.where[(..., *place)][..., None]
            part = chosen * slope[(..., *place)][..., None]
            down[(slice(None), slice(None), *window)] += part.reshape(*self.shape[:2], self.size, self.size)
        edge = self.padding
        return down[:, :, edge : down.shape[2] - edge, edge : down.shape[3] - edge]


class Flatten:
    def forward(self, state, x):
        self.shape = x.shape
        return x.reshape(len(x), -1)

    def backward(self, state, slope, gradients):
        return slope.reshape(self.shape)


class MeanOverPositions:
    def forward(self, state, x):
        self.shape = x.shape
        return x.mean((2, 3))

    def backward(self, state, slope, gradients):
        return np.broadcast_to(slope[:, :, None, None] / np.prod(self.shape[2:]), self.shape)


class Chain:
    def __init__(self, *parts):
        self.parts = parts

    def forward(self, state, x):
        for part in self.parts:
            x = part.forward(state, x)
        return x

    def backward(self, state, slope, gradients):
        for part in reversed(self.parts):
            slope = part.backward(state, slope, gradients)
        return slope

    def layers(self):
        """Those with a weight that moves."""
        for part in self.parts:
            if isinstance(part, Chain):
                yield from part.layers()
            elif isinstance(part, Conv | Linear):
                yield part


class Sum(Chain):
    """Branches side by side, added up."""

    def forward(self, state, x):
        return sum(part.forward(state, x) for part in self.parts)

    def backward(self, state, slope, gradients):
        return sum(part.backward(state, slope, gradients) for part in self.parts)


# Architectures


def small_vgg(blocks=3, hidden=1):
    parts = []
    for first in range(0, 8 * blocks, 8):  # convolution, norm, ReLU, twice; pooling, dropout
        for place in (first, first + 3):
            parts += [Conv(f"features.{place}", padding=1), Norm(f"features.{place + 1}"), ReLU()]
        parts.append(MaxPool(2, 2))
    parts.append(Flatten())
    for place in range(1, 3 * hidden + 1, 3):
        parts += [Linear(f"classifier.{place}"), ReLU()]
    return Chain(*parts, Linear(f"classifier.{3 * hidden + 1}"))


def all_cnn():
    parts = []
    for name, kernel, stride in [(0, 3, 1), (2, 3, 1), (4, 3, 2), (7, 3, 1), (9, 3, 1), (11, 3, 2), (14, 3, 1), (16, 1, 1), (18, 1, 1)]:
        parts += [Conv(f"features.{name}", stride, kernel // 2), ReLU()]
    return Chain(*parts[:-1], MeanOverPositions())


def resnet18():
    parts = [Conv("conv1", 2, 3), Norm("bn1"), ReLU(), MaxPool(3, 2, 1)]
    for block in (f"layer{layer}.{number}" for layer in (1, 2, 3, 4) for number in (0, 1)):
        stride = 2 if block in ("layer2.0", "layer3.0", "layer4.0") else 1
        main = [Conv(f"{block}.conv1", stride, 1), Norm(f"{block}.bn1"), ReLU(), Conv(f"{block}.conv2", 1, 1), Norm(f"{block}.bn2")]
        shortcut = [Conv(f"{block}.downsample.0", 2), Norm(f"{block}.downsample.1")] if stride == 2 else []
        parts += [Sum(Chain(*main), Chain(*shortcut)), ReLU()]
    return Chain(*parts, MeanOverPositions(), Linear("fc"))


# The slopes of the published losses at the logits: with p = softmax(z), dp_y/dz = p_y (onehot(y) - p) and dH/dz = -p (log p + H)


def unlikely_slope(logits, target, offset):
    """Of mean[-log(1 - p_y + offset)]."""
    slope = np.zeros_like(logits)
    for row, y in enumerate(target):
        p = softmax(logits[row])
        slope[row] = p[y] * (np.eye(len(p))[y] - p) / (1 - p[y] + offset)
    return slope / len(target)


def entropy_slope(logits):
    p = softmax(logits)
    return -p * (np.log(p) - np.sum(p * np.log(p)))


def published_slope(logits, target):
    return unlikely_slope(logits, target, 0.05) - 0.2 * np.stack([entropy_slope(row) for row in logits]) / len(target)


def depoison_slope(logits, target):
    slope = unlikely_slope(logits, target, 0.1)
    for row, y in enumerate(target):
        others = np.arange(logits.shape[1]) != y
        slope[row, others] += 0.2 * entropy_slope(logits[row, others]) / len(target)
    return slope


class PublishedSteps:
    """W <- W - lr (G - G U U^T), U the fewest leading left singular vectors of the layer's inputs that hold a share of the singular values.

    With ``last``, the layers compute with W + W B (Q - I) B^T; Q <- Q - .1 lr dL/dQ, the identity at the start. B is U, of linear layers
    its last columns only.

    Args:
        network: One of the above.
        state: Its state dict.
        retained: The images whose inputs to each layer span what is protected.
        share: Of the sum of the singular values.
        slope: Of the loss at the logits.
        last: How many columns of U a linear layer scales; None: no layer scales any.

    Attributes:
        ranks: Number of columns of U by layer.
    """

    def __init__(self, network, state, retained, share, slope, last=None):
        self.network, self.slope = network, slope
        self.state = {name: value.astype(np.float64) for name, value in state.items()}
        self.network.forward(self.state, retained)
        self.protected, self.scaled = {}, {}
        for layer in network.layers():
            _, singular, right = np.linalg.svd(layer.rows(self.state), full_matrices=False)
            self.protected[layer.name] = u = right[: protected_count(singular, share)].T
            self.scaled[layer.name] = u[:, :0] if last is None else u[:, -last:] if isinstance(layer, Linear) else u
        self.ranks = {name: u.shape[1] for name, u in self.protected.items()}
        self.weights = {name: self.state[f"{name}.weight"].reshape(-1, len(u)) for name, u in self.protected.items()}
        self.scales = {name: np.eye(b.shape[1]) for name, b in self.scaled.items()}

    def effective(self, name):
        """W + W B (Q - I) B^T."""
        w, b, q = self.weights[name], self.scaled[name], self.scales[name]
        return w + w @ b @ (q - np.eye(len(q))) @ b.T

    def gradient(self, images, target):
        """dL/dW' by layer, (out, dim)."""
        for name in self.weights:
            weight = self.state[f"{name}.weight"]
            self.state[f"{name}.weight"] = self.effective(name).reshape(weight.shape)
        gradients = {}
        self.network.backward(self.state, self.slope(self.network.forward(self.state, images), target), gradients)
        return {name: gradient.reshape(len(gradient), -1) for name, gradient in gradients.items()}

    def step(self, images, target, lr):
        for name, g in self.gradient(images, target).items():
            w, u, b, q = self.weights[name], self.protected[name], self.scaled[name], self.scales[name]
            slope = g + g @ b @ (q - np.eye(len(q))).T @ b.T  # dL/dW
            self.scales[name] = q - 0.1 * lr * (w @ b).T @ g @ b
            self.weights[name] = w - lr * (slope - slope @ u @ u.T)
