"""Ways to forget."""

from pgu_lightning.methods.base import Job, Method, train
from pgu_lightning.methods.closed_form import ClosedForm
from pgu_lightning.methods.pgu import PGU, exponential_decay
from pgu_lightning.methods.retrain import Retrain

__all__ = ["PGU", "ClosedForm", "Job", "Method", "Retrain", "exponential_decay", "train"]
