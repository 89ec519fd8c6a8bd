"""LightningCLI: the callback, the request and the settings written in YAML, checked by jsonargparse before anything runs.

Needs jsonargparse[signatures]. Run, from this folder:
    python lightning_cli.py fit --config lightning_cli_learn.yaml
    python lightning_cli.py fit --config lightning_cli_forget.yaml
and to forget something else: --trainer.callbacks.forget.classes "[8]"
"""

from __future__ import annotations

import torch
from existing_trainer import DigitsData, DigitsModule
from lightning.pytorch.cli import ArgsType, LightningCLI

from pgu_lightning.projection import Soft
from pgu_lightning.settings import Settings


class Digits(DigitsModule):
    """A fit that unlearns starts from trained weights, and `--ckpt_path` would resume the fit that learnt them.

    Args:
        weights: A checkpoint to start from.
    """

    def __init__(self, weights: str | None = None) -> None:
        super().__init__()
        if weights is not None:
            self.load_state_dict(torch.load(weights, weights_only=True)["state_dict"])


def settings(damping: float = 0.01, trust_radius: float = 0.01) -> Settings:
    """What of the settings may be said in YAML: jsonargparse cannot yet read a dataclass whose defaults are functions."""
    return Settings(rule=Soft(damping), trust_radius=trust_radius)


def main(args: ArgsType = None) -> LightningCLI:
    return LightningCLI(Digits, DigitsData, args=args, save_config_callback=None, seed_everything_default=0)


if __name__ == "__main__":
    cli = main()
    for callback in cli.trainer.callbacks:
        if getattr(callback, "report", None) is not None:
            print(callback.report.outcome.reason, callback.report.models)
