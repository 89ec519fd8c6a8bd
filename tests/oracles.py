"""The mathematics once more, in float64 NumPy and plain loops, straight from the definitions. Nothing of the package is used here."""

from __future__ import annotations

from fractions import Fraction
from itertools import product

import numpy as np
from scipy.special import log_softmax, logsumexp, softmax
from scipy.stats import rankdata

# Statistics


def source_index(index, size, mode):
    """Which element of an axis a padded position shows; None is a zero."""
    if 0 <= index < size:
        return index
    match mode:
        case "zeros":
            return None
        case "reflect":
            return -index if index < 0 else 2 * (size - 1) - index
        case "replicate":
            return min(max(index, 0), size - 1)
        case "circular":
            return index % size
    raise AssertionError(mode)


def convolution_rows(x, kernel, stride, before, out, mode, dilation, groups):
    """The patches of a convolution.

    Args:
        x: (batch, channels, *spatial).
        kernel: Taps by axis.
        stride: By axis.
        before: Padding in front of each axis.
        out: Output size by axis.
        mode: What the padding shows.
        dilation: By axis.
        groups: Channel groups.

    Returns:
        (groups, batch * positions, channels of a group * taps).
    """
    x = np.asarray(x, np.float64)
    batch, channels, *size = x.shape
    each = channels // groups
    result = np.zeros((groups, batch * int(np.prod(out)), each * int(np.prod(kernel))))
    for group in range(groups):
        for row, (sample, *position) in enumerate(product(range(batch), *map(range, out))):
            for column, (channel, *tap) in enumerate(product(range(each), *map(range, kernel))):
                place = [
                    source_index(position[axis] * stride[axis] + tap[axis] * dilation[axis] - before[axis], size[axis], mode)
                    for axis in range(len(kernel))
                ]
                if None not in place:
                    result[group, row, column] = x[(sample, group * each + channel, *place)]
    return result


def transposed_output(x, weight, stride, padding, output_padding, dilation, groups):
    """A transposed convolution: each input position adds its channels, times each tap's matrix, to the output position of that tap.

    Args:
        x: (batch, channels, *spatial).
        weight: (channels, out channels of a group, *taps).
        stride: By axis.
        padding: By axis, what is cut off both ends.
        output_padding: By axis, what is put on behind.
        dilation: By axis.
        groups: Channel groups.
    """
    x, weight = np.asarray(x, np.float64), np.asarray(weight, np.float64)
    batch, channels, *size = x.shape
    each, taps = channels // groups, weight.shape[2:]
    axes = list(zip(size, taps, stride, padding, output_padding, dilation, strict=True))
    out = [(n - 1) * s - 2 * p + d * (k - 1) + extra + 1 for n, k, s, p, extra, d in axes]
    result = np.zeros((batch, groups * weight.shape[1], *out))
    for sample, channel, *place in product(range(batch), range(channels), *map(range, [*size, *taps])):
        position, tap = place[: len(size)], place[len(size) :]
        to = [i * s - p + j * d for i, j, (_, _, s, p, _, d) in zip(position, tap, axes, strict=True)]
        if all(0 <= index < limit for index, limit in zip(to, out, strict=True)):
            first = channel // each * weight.shape[1]
            result[(sample, slice(first, first + weight.shape[1]), *to)] += (
                x[(sample, channel, *position)] * weight[(channel, slice(None), *tap)]
            )
    return result


def gram(rows):
    """Sum of the outer products of (groups, rows, dim), one row after the other."""
    groups, _, dim = rows.shape
    total = np.zeros((groups, dim, dim))
    for group in range(groups):
        for row in np.asarray(rows[group], np.float64):
            total[group] += np.outer(row, row)
    return total


def convolution_gram(x, weight, padding):
    """The Gram of a convolution with stride 1, zeros around it and one group, whose weight has this shape."""
    kernel = weight.shape[2:]
    out = [size + 2 * padding - taps + 1 for size, taps in zip(x.shape[2:], kernel, strict=True)]
    ones = [1] * len(kernel)
    return gram(convolution_rows(x, kernel, ones, [padding] * len(kernel), out, "zeros", ones, 1))


# Projection


def eigen(matrix):
    """Eigenvalues of (groups, dim, dim), ascending and not negative, and eigenvectors in columns."""
    pairs = [np.linalg.eigh(part) for part in np.asarray(matrix, np.float64)]
    return np.stack([np.maximum(values, 0) for values, _ in pairs]), np.stack([vectors for _, vectors in pairs])


def protected_count(masses, share):
    """How many of the largest ``masses`` are needed to hold ``share`` of them: at least one, none of those that are zero. Exact."""
    masses = sorted((Fraction(mass) for mass in masses if mass), reverse=True)
    held, total = Fraction(0), sum(masses, Fraction(0))
    for count, mass in enumerate(masses, 1):
        held += mass
        if held >= Fraction(str(share)) * total:
            return count
    return 0


def soft_gains(values, damping):
    """a / (w + a), a = damping * mean(w), group by group; of a single eigenvalue only whether it is there."""
    gains = np.ones_like(values)
    for group, row in enumerate(values):
        turn = damping * sum(row) / len(row) if len(row) > 1 else 0
        for place, value in enumerate(row):
            if value > 0:
                gains[group, place] = turn / (value + turn)
    return gains


def projection(vectors, gains):
    """The dense matrices V diag(gains) V^T."""
    return np.stack(
        [sum(gain * np.outer(v, v) for gain, v in zip(row, part.T, strict=True)) for row, part in zip(gains, vectors, strict=True)]
    )


def response(weight, matrix):
    """tr(W M W^T), summed over groups."""
    return sum(np.trace(w @ m @ w.T) for w, m in zip(np.asarray(weight, np.float64), matrix, strict=True))


def class_removed(weight, retain, forget, retain_alpha, forget_alpha):
    """W (I - P_f (I - P_r))^T with P = U diag(alpha s / ((alpha - 1) s + 1)) U^T, s = values / sum(values), from SVDs, group by group."""

    def space(matrix, alpha):
        left, values, _ = np.linalg.svd(matrix)
        share = values / values.sum()
        return left @ np.diag(alpha * share / ((alpha - 1) * share + 1)) @ left.T

    removed = []
    for w, m_r, m_f in zip(np.asarray(weight, np.float64), retain, forget, strict=True):
        eye = np.eye(len(m_r))
        removed.append(w @ (eye - space(m_f, forget_alpha) @ (eye - space(m_r, retain_alpha))).T)
    return np.stack(removed)


# Objectives, all of float64 logits (rows, classes) and labels (rows,)


def margins(logits, target):
    return np.array([row[y] - logsumexp(np.delete(row, y)) for row, y in zip(logits, target, strict=True)])


def entropy(logits):
    log_p = log_softmax(logits)
    return -sum(np.exp(value) * value for value in log_p)


def published(logits, target, offset=0.05, entropy_weight=0.2):
    rows = [-np.log(1 - softmax(row)[y] + offset) - entropy_weight * entropy(row) for row, y in zip(logits, target, strict=True)]
    return np.mean(rows)


def depoison(logits, target, offset=0.1, entropy_weight=0.2):
    rows = [
        -np.log(1 - softmax(row)[y] + offset) + entropy_weight * entropy(np.delete(row, y)) for row, y in zip(logits, target, strict=True)
    ]
    return np.mean(rows)


def softplus_margin(logits, target, threshold=0.0):
    return np.mean([np.logaddexp(0, m - threshold) for m in margins(logits, target)])


def calibrated(logits, target, validation):
    """Each margin against the validation margins' quantile (of Hazen) at its rank."""
    own = margins(logits, target)
    goals = np.quantile(validation, (rankdata(own, method="ordinal") - 0.5) / len(own), method="hazen")
    return np.mean([0.5 * d**2 if abs(d) < 1 else abs(d) - 0.5 for d in own - goals])


def cross_entropy(logits, target):
    return -np.mean([log_softmax(row)[y] for row, y in zip(logits, target, strict=True)])


def anchor(logits, original, target, gone=()):
    """Mean KL(original || present) over the rows of classes that stay, among the classes that stay; and the number of rows."""
    stay = [label for label in range(logits.shape[1]) if label not in gone]
    values = []
    for present, before, y in zip(logits, original, target, strict=True):
        if y in stay:
            log_q, log_p = log_softmax(present[stay]), log_softmax(before[stay])
            values.append(sum(np.exp(log_p) * (log_p - log_q)))
    return (np.mean(values), len(values)) if values else (0.0, 0)


# The default algorithm


class TrustRegion:
    """Whole steps on z = W2 tanh(W1 x): margin loss, anchor, soft filter, radius from the interference budget, parabola.

    Args:
        weights: W1 (hidden, features) and W2 (classes, hidden), without biases.
        retained: Retained inputs, (rows, features).
        damping: Of the soft filter.
        radius: Square root of the relative interference of a step.
        anchor_weight: Weight of the anchor.
        gone: Labels that the anchor leaves out.
    """

    def __init__(self, weights, retained, damping, radius, anchor_weight, gone):
        self.weights = [np.array(w, np.float64) for w in weights]
        self.original = [w.copy() for w in self.weights]
        self.radius, self.anchor_weight, self.gone = radius, anchor_weight, gone
        inputs = [retained, np.tanh(retained @ self.original[0].T)]
        self.grams = [x.T @ x for x in inputs]
        self.filters = []
        for matrix in self.grams:
            values, vectors = np.linalg.eigh(matrix)
            turn = damping * values.mean()
            self.filters.append(vectors @ np.diag(turn / (values + turn)) @ vectors.T)
        self.energy = sum(np.trace(w @ a @ w.T) for w, a in zip(self.original, self.grams, strict=True))

    @staticmethod
    def forward(weights, x):
        hidden = np.tanh(x @ weights[0].T)
        return hidden, hidden @ weights[1].T

    def loss(self, weights, forget, validation):
        value = softplus_margin(self.forward(weights, forget[0])[1], forget[1])
        if validation is not None:
            present, before = (self.forward(w, validation[0])[1] for w in (weights, self.original))
            value += self.anchor_weight * anchor(present, before, validation[1], self.gone)[0]
        return value

    def gradient(self, forget, validation):
        """By the chain rule: d softplus(m) = sigmoid(m) dm, dm/dz = onehot(y) - softmax over the others, dKL/dz = q - p."""
        (x, y), (hidden, logits) = forget, self.forward(self.weights, forget[0])
        slope = np.zeros_like(logits)
        for row, label in enumerate(y):
            others = [c for c in range(logits.shape[1]) if c != label]
            m = margins(logits[row : row + 1], [label])[0]
            slope[row, others] = -softmax(logits[row, others])
            slope[row, label] = 1
            slope[row] /= (1 + np.exp(-m)) * len(y)
        total = self.backward(x, hidden, slope)
        if validation is None:
            return total
        (x, y), (hidden, logits) = validation, self.forward(self.weights, validation[0])
        before = self.forward(self.original, x)[1]
        stay = [label for label in range(logits.shape[1]) if label not in self.gone]
        kept = [row for row, label in enumerate(y) if label in stay]
        slope = np.zeros_like(logits)
        for row in kept:
            slope[row, stay] = self.anchor_weight * (softmax(logits[row, stay]) - softmax(before[row, stay])) / len(kept)
        return [one + other for one, other in zip(total, self.backward(x, hidden, slope), strict=True)]

    def backward(self, x, hidden, slope):
        return [((slope @ self.weights[1]) * (1 - hidden**2)).T @ x, slope.T @ hidden]

    def step(self, forget, validation=None):
        gradient = self.gradient(forget, validation)
        direction = [g @ p for g, p in zip(gradient, self.filters, strict=True)]
        slope = sum(np.sum(g * d) for g, d in zip(gradient, direction, strict=True))
        interference = sum(np.trace(d @ a @ d.T) for d, a in zip(direction, self.grams, strict=True)) / self.energy
        longest = self.radius / np.sqrt(interference)
        now = self.loss(self.weights, forget, validation)
        there = self.loss([w - longest * d for w, d in zip(self.weights, direction, strict=True)], forget, validation)
        curvature = 2 * (there - now + slope * longest) / longest**2
        length = min(slope / curvature, longest) if curvature > 0 else longest
        self.weights = [w - length * d for w, d in zip(self.weights, direction, strict=True)]
