"""A forget loss of your own, named in a config: here a hinge, which stops pushing a sample once its label is safely not the answer.

A rule, a stop rule, a method, a data set or a network is named the same way.

Run: python examples/custom_objective.py
That is: PYTHONPATH=examples pgu-lightning '+method.settings.objective={_target_: custom_objective.Hinge, room: 1.0}'
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from torch import Tensor

from pgu_lightning.app.main import main
from pgu_lightning.evaluation.scores import margin
from pgu_lightning.objectives import Objective


@dataclass
class Hinge(Objective):
    """mean max(0, margin + room), where margin is log p_y / (1 - p_y).

    Of an objective's four methods only this one has no default in ``Objective``.

    Attributes:
        room: How far below even odds the label has to come.
    """

    room: float = 1.0

    def __call__(self, logits: Tensor, target: Tensor, samples: Tensor) -> Tensor:
        return (margin(logits, target) + self.room).relu().mean()


if __name__ == "__main__":
    sys.argv[1:] = ["+method.settings.objective={_target_: custom_objective.Hinge, room: 1.0}", *sys.argv[1:]]
    main()
