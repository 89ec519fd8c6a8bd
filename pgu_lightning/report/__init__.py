"""Records in, pictures out: the terminal's table, the HTML page, and what goes to Weights & Biases."""

from pgu_lightning.report.html import write_html, write_sweep_html
from pgu_lightning.report.stages import print_stages
from pgu_lightning.report.sweep import Sweep, SweepJob, print_sweep, without_details
from pgu_lightning.report.table import MODELS, print_preflight, print_report
from pgu_lightning.report.wandb import define_metrics, log_report

__all__ = [
    "MODELS",
    "Sweep",
    "SweepJob",
    "define_metrics",
    "log_report",
    "print_preflight",
    "print_report",
    "print_stages",
    "print_sweep",
    "without_details",
    "write_html",
    "write_sweep_html",
]
