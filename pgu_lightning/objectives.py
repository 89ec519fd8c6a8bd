"""What is minimised on the forget set, and the anchor that is minimised beside it.

Each objective is a mean over the rows of a batch, computed in float32. ``margin`` is z_y - logsumexp of the other logits = log p_y / (1 -
p_y).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from pgu_lightning.evaluation.membership import auc_standard_error, mia_auc
from pgu_lightning.evaluation.scores import Scores, margin


@dataclass(frozen=True)
class Known:
    """What is known of the original model before the first step.

    Attributes:
        validation: Its scores on validation data; None without.
        probabilities: Its answers to validation data, (samples, classes); None without.
        training: Quantiles of its margins on the training data, evenly spaced, ascending; empty where the statistics have none.
    """

    validation: Scores | None
    probabilities: Tensor | None = None
    training: Sequence[float] = ()


class Objective(Protocol):
    """A forget loss. ``_target_`` in a config may name any class with these four methods and the attribute."""

    @property
    def aim(self) -> float | None:
        """The forget accuracy that it leads to, as far as it knows; None: it does not say."""
        return None

    def prepare(self, known: Known) -> None:
        """Look at what is known of the original model, once, before the first step.

        Raises:
            ValueError: If the objective needs validation data and has none.
        """

    def look(self, forget: Scores) -> None:
        """Look at the forget set under the present model, before the first step and after each epoch."""

    def __call__(self, logits: Tensor, target: Tensor, samples: Tensor) -> Tensor:
        """The mean loss over a batch of the forget set.

        Args:
            logits: (rows, classes).
            target: Labels, (rows,).
            samples: Positions of the batch's samples in the forget set, (samples,).
        """

    def refine(self, forget: Scores, validation: Scores | None) -> bool:
        """Asked when the stop rule is met and its decision says so: set a further goal and return True, or return False.

        Args:
            forget: The forget set under the present model.
            validation: Validation samples of the same kind (for a class request: of the class).
        """


class _Fixed:
    @property
    def aim(self) -> float | None:
        """It does not say."""
        return None

    def prepare(self, known: Known) -> None:
        """Nothing to look at."""

    def look(self, forget: Scores) -> None:
        """Nothing to look at."""

    def refine(self, forget: Scores, validation: Scores | None) -> bool:
        """No further goal."""
        return False


@dataclass
class Published(_Fixed):
    """mean[-log(1 - p_y + offset)] - entropy_weight * mean[H(p)], for classes and samples (Hoang et al., WACV 2024, eq. 9 and 10).

    Its gradient vanishes where p_y is near 1: on a saturated model forgetting takes long to begin.

    Attributes:
        offset: Keeps the logarithm finite.
        entropy_weight: Weight of the entropy, which is maximised.
    """

    offset: float = 0.05
    entropy_weight: float = 0.2

    def __call__(self, logits: Tensor, target: Tensor, samples: Tensor) -> Tensor:
        """The mean loss over a batch."""
        return _unlikely(logits, target, self.offset) - self.entropy_weight * _entropy(logits.float()).mean()


@dataclass
class Depoison(_Fixed):
    """mean[-log(1 - p_y + offset)] + entropy_weight * mean[H(softmax over the classes other than y)], y the wrong label (ibid., eq. 12).

    Attributes:
        offset: Keeps the logarithm finite.
        entropy_weight: Weight of the entropy, which is minimised: the model shall decide for one other class.
    """

    offset: float = 0.1
    entropy_weight: float = 0.2

    def __call__(self, logits: Tensor, target: Tensor, samples: Tensor) -> Tensor:
        """The mean loss over a batch."""
        others = torch.ones_like(logits, dtype=torch.bool).scatter(1, target[:, None], False)
        rest = logits.float()[others].view(len(logits), -1)
        return _unlikely(logits, target, self.offset) + self.entropy_weight * _entropy(rest).mean()


def _unlikely(logits: Tensor, target: Tensor, offset: float) -> Tensor:
    chosen = logits.float().softmax(1).gather(1, target[:, None])[:, 0]
    return -(1 - chosen + offset).log().mean()


def _entropy(logits: Tensor) -> Tensor:
    log_p = logits.log_softmax(1)
    return -(log_p.exp() * log_p).sum(1)


@dataclass
class Margin(_Fixed):
    """mean softplus(margin - threshold): the gradient does not vanish where p_y is near 1.

    Attributes:
        threshold: Margin below which a sample counts as forgotten.
    """

    threshold: float = 0.0

    def __call__(self, logits: Tensor, target: Tensor, samples: Tensor) -> Tensor:
        """The mean loss over a batch."""
        return F.softplus(margin(logits, target) - self.threshold).mean()


@dataclass
class GoneClasses(_Fixed):
    """The label of a class that is gone is no answer any more, and what was trained on cannot be told from what was not.

    mean h(max(m_i - t_i, 0)), h(d) = d^2 / 4, from 8 on linear: the last samples that hold out weigh most. At first t_i is ``lowest`` for
    all. When all is forgotten and members can still be told from validation samples of the class, t_i becomes the margin that these have
    under the present model, at the rank that m_i has in the forget set; and again, as long as that brings the membership AUC down.

    Attributes:
        lowest: Margin that is low enough for any sample: at -4 the label has a probability of .018.
        errors: Membership counts as gone below 0.5 + this many standard errors of the AUC.
        progress: A further goal must have brought the AUC down by this many standard errors, or it was the last.
    """

    lowest: float = -4.0
    errors: float = 2.0
    progress: float = 0.5
    _goals: Tensor | None = field(default=None, repr=False)
    _auc: float = field(default=math.inf, repr=False)

    def __call__(self, logits: Tensor, target: Tensor, samples: Tensor) -> Tensor:
        """The mean loss over a batch."""
        own = margin(logits, target)
        goals = torch.full_like(own, self.lowest) if self._goals is None else _of(samples, self._goals, own)
        return F.huber_loss(own.maximum(goals), goals, delta=8.0) / 2

    def refine(self, forget: Scores, validation: Scores | None) -> bool:
        """Aim at the validation samples' margins while the membership trace is above noise and goes down."""
        if validation is None or not len(validation):
            return False
        auc, error = mia_auc(forget, validation), auc_standard_error(len(forget), len(validation))
        if auc <= 0.5 + self.errors * error or auc > self._auc - self.progress * error:
            return False
        self._auc = auc
        self._goals = _at_its_rank(forget.margin, validation.margin.sort().values).clamp(max=self.lowest)
        return True


@dataclass
class Calibrated(_Fixed):
    """Forget samples shall look like data that was never seen: the distance between their margins and the validation data's.

    mean smooth_l1(m_i, t_i), where t_i is the validation margin at the rank that m_i has in the forget set: the optimal coupling of the two
    distributions, taken anew after each epoch. It has a fixed point, so running on does no harm. Validation margins are always the original
    model's.

    A forget set may be harder or easier than validation data. How hard a sample is shows in its margin already while it is remembered, by
    its rank among all training samples. Rank while trained on and rank while not are taken to be coupled by a Gaussian copula, and
    validation samples are weighed by how likely they are as hard as the forget set's.

    Attributes:
        coupling: Correlation of that copula, in [0, 1); 0 takes every forget set to be as hard as validation data.
    """

    coupling: float = 0.85
    _validation: Tensor = field(default_factory=lambda: torch.empty(0), repr=False)
    _training: Tensor = field(default_factory=lambda: torch.empty(0), repr=False)
    _places: Tensor | None = field(default=None, repr=False)
    _goals: Tensor = field(default_factory=lambda: torch.empty(0), repr=False)

    def __post_init__(self) -> None:
        if not 0 <= self.coupling < 1:
            raise ValueError(f"coupling is a correlation in [0, 1), got {self.coupling}")

    def prepare(self, known: Known) -> None:
        """Take down the margins of validation and training data."""
        if known.validation is None or not len(known.validation):
            raise ValueError(
                "Forgetting samples aims at how the model treats data it never saw, so it needs validation data (1,000 samples fix the "
                "forget accuracy to about +-.01). Give the trainer a validation loader, or choose another objective, such as Margin()."
            )
        self._validation = known.validation.margin.sort().values
        self._training = torch.tensor(known.training, dtype=torch.float64)

    def look(self, forget: Scores) -> None:
        """Set each sample's goal by its rank; the first time, under the original model, see how hard the forget set is."""
        if self._places is None:
            hardness = torch.searchsorted(self._training, forget.margin.double()) / max(len(self._training), 1)
            self._places = places(hardness if len(self._training) else torch.empty(0), len(self._validation), self.coupling)
        self._goals = _at_its_rank(forget.margin, self._validation, self._places)

    @property
    def aim(self) -> float | None:
        """The share of goals above even odds."""
        return float((self._goals > 0).double().mean()) if len(self._goals) else None

    def __call__(self, logits: Tensor, target: Tensor, samples: Tensor) -> Tensor:
        """The mean loss over a batch."""
        own = margin(logits, target)
        return F.smooth_l1_loss(own, _of(samples, self._goals, own))


def places(hardness: Tensor, rows: int, coupling: float) -> Tensor:
    """Where each of some validation samples, in the order of their margins, stands in the distribution that a forget set is to have.

    Under a Gaussian copula, a sample whose normal score is x among the trained has one of N(coupling x, 1 - coupling^2) among the unseen.
    The density of that mixture over the standard normal one is a validation sample's weight.

    Args:
        hardness: Rank of each forget sample among the training samples, in [0, 1]; empty if nothing is known of it.
        rows: Number of validation samples.
        coupling: Correlation of the copula.

    Returns:
        The cumulative weight up to the middle of each validation sample, (rows,), ascending in [0, 1].

    Example:
        >>> places(torch.empty(0), 4, 0.85).tolist()
        [0.125, 0.375, 0.625, 0.875]
        >>> bool((places(torch.tensor([0.9, 0.8]), 4, 0.85) < places(torch.empty(0), 4, 0.85)).all())
        True
    """
    seen = torch.special.ndtri((torch.arange(rows, dtype=torch.float64) + 0.5) / rows)
    weights = torch.ones_like(seen)
    if len(hardness) and coupling:
        trained = torch.special.ndtri(hardness.double().clamp(0.005, 0.995))
        spread = math.sqrt(1 - coupling**2)
        exponent = (seen.square() - ((seen - coupling * trained[:, None]) / spread).square()) / 2
        weights = exponent.exp().mean(0)
    weights /= weights.sum()
    return (weights.cumsum(0) - weights / 2).float()


@dataclass
class WrongLabels(_Fixed):
    """A wrong label shall be no likelier than it is on data that was never seen: the margin above validation data's at the same rank.

    mean smooth_l1(max(m_i - t_i, 0)). t_i is the margin of the same label over the validation samples of other classes, at the rank that
    m_i has among the forget samples of its label, but not below ``lowest``: what is that unlikely need not become more so, and without
    validation data that is the goal of all. It has a fixed point, and pulls nothing up.

    Attributes:
        lowest: Margin that is low enough for any sample: at -4 a wrong label has a probability of .018.
    """

    lowest: float = -4.0
    _validation: Mapping[int, Tensor] = field(default_factory=dict, repr=False)
    _goals: Tensor = field(default_factory=lambda: torch.empty(0), repr=False)

    def prepare(self, known: Known) -> None:
        """Take down each label's margins over the validation samples of other classes."""
        if known.validation is not None and known.probabilities is not None:
            margins = torch.logit(known.probabilities.double(), eps=1e-12).float()
            labels = range(known.probabilities.shape[1])
            self._validation = {label: margins[known.validation.label != label, label].sort().values for label in labels}

    def look(self, forget: Scores) -> None:
        """Set each sample's goal by its rank among those of its label."""
        self._goals = torch.full_like(forget.margin, self.lowest)
        for label, margins in self._validation.items():
            own = forget.label == label
            if bool(own.any()) and len(margins):
                self._goals[own] = _at_its_rank(forget.margin[own], margins).clamp(min=self.lowest)

    def __call__(self, logits: Tensor, target: Tensor, samples: Tensor) -> Tensor:
        """The mean loss over a batch."""
        own = margin(logits, target)
        goals = _of(samples, self._goals, own)
        return F.smooth_l1_loss(own.maximum(goals), goals)


def _at_its_rank(values: Tensor, reference: Tensor, stands: Tensor | None = None) -> Tensor:
    """For each value the quantile of ``reference``, ascending, at its rank: the optimal coupling of the two distributions.

    ``stands`` says where each of the reference stands in its distribution; None: evenly.
    """
    share = (values.argsort().argsort() + 0.5) / len(values)
    if stands is None:
        stands = places(torch.empty(0), len(reference), 0.0)
    above = torch.searchsorted(stands, share).clamp(max=len(reference) - 1)
    below = (above - 1).clamp(min=0)
    width = (stands[above] - stands[below]).clamp(min=torch.finfo(stands.dtype).tiny)
    return torch.lerp(reference[below], reference[above], ((share - stands[below]) / width).clamp(0, 1))


def _of(samples: Tensor, goals: Tensor, margins: Tensor) -> Tensor:
    """The goals of a batch's samples."""
    if len(samples) != len(margins):
        found = f"{len(margins)} labels for {len(samples)} samples"
        raise ValueError(f"Samples are ranked by one label each, and this batch has {found}: choose another objective, such as Margin().")
    return goals[samples.cpu()].to(margins)


def anchor(logits: Tensor, original: Tensor, target: Tensor, gone: Sequence[int] = ()) -> tuple[Tensor, int]:
    """Mean KL(original answers || present answers) over validation inputs.

    For a class request only samples of other classes count, and the gone logits are left out on both sides.

    Args:
        logits: Present answers, (rows, classes).
        original: The original model's, (rows, classes).
        target: Labels, (rows,).
        gone: The labels that are to be forgotten.

    Returns:
        The mean, and over how many rows it was taken; 0 rows give 0.
    """
    classes = torch.tensor([label not in gone for label in range(logits.shape[1])], device=logits.device)
    rows = classes[target]
    if not bool(rows.any()):
        return logits.sum() * 0.0, 0
    present, before = (z.float()[rows][:, classes].log_softmax(1) for z in (logits, original))
    return F.kl_div(present, before, log_target=True, reduction="batchmean"), int(rows.sum())
