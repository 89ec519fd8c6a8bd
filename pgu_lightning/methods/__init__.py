"""Ways to forget."""

from pgu_lightning.methods.base import Job, Method, train
from pgu_lightning.methods.closed_form import ClosedForm
from pgu_lightning.methods.finetune import Finetune
from pgu_lightning.methods.neggrad_plus import NegGradPlus
from pgu_lightning.methods.pgu import PGU, exponential_decay
from pgu_lightning.methods.retrain import Retrain

__all__ = ["PGU", "ClosedForm", "Finetune", "Job", "Method", "NegGradPlus", "Retrain", "exponential_decay", "train"]
