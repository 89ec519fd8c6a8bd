"""Ways to forget."""

from pgu_lightning.methods.base import Job, Method, train
from pgu_lightning.methods.pgu import PGU, exponential_decay
from pgu_lightning.methods.retrain import Retrain

__all__ = ["PGU", "Job", "Method", "Retrain", "exponential_decay", "train"]
