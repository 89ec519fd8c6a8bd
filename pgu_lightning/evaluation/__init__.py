"""How well a model has forgotten, and what it still can do, as functions of per-example scores."""

from pgu_lightning.evaluation.attack import TrainedAttack
from pgu_lightning.evaluation.membership import MembershipAUC, auc_standard_error, mia_auc
from pgu_lightning.evaluation.metrics import estimated_gap, loss_histograms, model_metrics
from pgu_lightning.evaluation.scores import Scores, margin

__all__ = [
    "MembershipAUC",
    "Scores",
    "TrainedAttack",
    "auc_standard_error",
    "estimated_gap",
    "loss_histograms",
    "margin",
    "mia_auc",
    "model_metrics",
]
