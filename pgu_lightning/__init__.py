"""Projected-gradient unlearning for PyTorch Lightning."""

from importlib.metadata import version

from pgu_lightning.callback import PGUCallback
from pgu_lightning.mixin import PGUMixin
from pgu_lightning.passes import collect
from pgu_lightning.records import Report
from pgu_lightning.requests import ForgetRequest
from pgu_lightning.statistics import RetainSpace

__version__ = version("pgu-lightning")
__all__ = ["ForgetRequest", "PGUCallback", "PGUMixin", "Report", "RetainSpace", "__version__", "collect"]
