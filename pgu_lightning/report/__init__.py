"""Records in, pictures out: the terminal's table, the HTML page, and what loggers show. ``report.wandb`` is for those who have wandb."""

from pgu_lightning.report.figures import figures
from pgu_lightning.report.html import write_html, write_sweep_html
from pgu_lightning.report.stages import print_stages
from pgu_lightning.report.sweep import Sweep, SweepJob, print_sweep, without_details
from pgu_lightning.report.table import MODELS, print_preflight, print_report

__all__ = [
    "MODELS",
    "Sweep",
    "SweepJob",
    "figures",
    "print_preflight",
    "print_report",
    "print_stages",
    "print_sweep",
    "without_details",
    "write_html",
    "write_sweep_html",
]
