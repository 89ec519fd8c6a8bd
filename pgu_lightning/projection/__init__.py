"""From statistics to allowed updates."""

from pgu_lightning.projection.guard import UpdateGuard
from pgu_lightning.projection.projector import Projector
from pgu_lightning.projection.rules import Hard, Rule, Soft
from pgu_lightning.projection.scale import Scale, ScaledSpace
from pgu_lightning.projection.spectrum import Damped, Spectrum

__all__ = ["Damped", "Hard", "Projector", "Rule", "Scale", "ScaledSpace", "Soft", "Spectrum", "UpdateGuard"]
