"""Whether a model's losses tell forgotten samples from samples it never saw."""

from __future__ import annotations

from typing import Any

import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from pgu_lightning.evaluation.scores import Scores


def mia_auc(members: Scores, nonmembers: Scores) -> float:
    """AUROC of the attack that calls an example a member when its loss is low.

    0.5: the two cannot be told apart; above: the members have the lower loss; below: they have the higher one, which also gives them away.
    An attack on the population's losses, so a smoke test: attacks fitted to each example find more.

    Args:
        members: The forget samples.
        nonmembers: Samples of the same kind that the model was never trained on: for a class request test samples of that class, otherwise
            all test samples.

    Returns:
        A number in [0, 1]; ties count half.

    Raises:
        ValueError: If a group is empty or a loss is not a number.

    Source:
        Yeom et al., "Privacy Risk in Machine Learning", CSF 2018, arXiv 1709.01604 (the loss as attack).

    Example:
        >>> target = torch.tensor([0, 0])
        >>> mia_auc(Scores.of(torch.tensor([[5.0, 0.0], [2.0, 0.0]]), target), Scores.of(torch.tensor([[3.0, 0.0], [1.0, 0.0]]), target))
        0.75
    """
    is_member = torch.cat([torch.ones(len(members)), torch.zeros(len(nonmembers))])
    return _auc(torch.cat([members.loss, nonmembers.loss]), is_member.bool())


def auc_standard_error(n_members: int, n_nonmembers: int) -> float:
    """Standard error of the AUROC where there is nothing to find: sqrt((n + m + 1) / (12 n m)).

    An AUROC within two of these around 0.5 is no evidence of anything. Ties make the true value smaller.

    Args:
        n_members: Samples in one group, at least 1.
        n_nonmembers: Samples in the other, at least 1.

    Returns:
        The standard error.

    Raises:
        ValueError: If a group is empty.

    Source:
        Mann and Whitney, "On a test of whether one of two random variables is stochastically larger than the other", 1947: the variance of
        U = n m AUROC under the null hypothesis is n m (n + m + 1) / 12.

    Example:
        >>> round(auc_standard_error(100, 1000), 4)
        0.0303
    """
    if min(n_members, n_nonmembers) < 1:
        raise ValueError(f"Both groups need samples, got {n_members} and {n_nonmembers}.")
    return ((n_members + n_nonmembers + 1) / (12 * n_members * n_nonmembers)) ** 0.5


class MembershipAUC(Metric):
    """``mia_auc`` over batches and processes.

    Example:
        >>> metric = MembershipAUC()
        >>> metric.update(torch.tensor([0.1, 0.9, 0.5]), torch.tensor([True, True, False]))
        >>> metric.compute()
        tensor(0.5000)
    """

    full_state_update = False
    higher_is_better = False
    loss: list[Tensor]
    is_member: list[Tensor]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("loss", default=[], dist_reduce_fx="cat")
        self.add_state("is_member", default=[], dist_reduce_fx="cat")

    def update(self, loss: Tensor, is_member: Tensor) -> None:
        """Add examples: their losses, (N,), and whether they are forget samples, (N,) bool."""
        self.loss.append(loss.detach())
        self.is_member.append(is_member)

    def compute(self) -> Tensor:
        """The AUROC of all examples, a scalar."""
        return torch.tensor(_auc(dim_zero_cat(self.loss).cpu(), dim_zero_cat(self.is_member).cpu()), device=self.device)


def _auc(loss: Tensor, is_member: Tensor) -> float:
    members = int(is_member.sum())
    if not 0 < members < len(loss):
        raise ValueError(f"Both groups need samples, got {members} members and {len(loss) - members} others.")
    if loss.isnan().any():
        raise ValueError(f"{int(loss.isnan().sum())} of {len(loss)} losses are not numbers: the model has diverged.")
    # Infinity is a loss like any other to a rank, and refused by scikit-learn.
    return float(roc_auc_score(is_member.numpy(), -loss.double().clamp(max=torch.finfo(torch.float64).max).numpy()))
