"""What the training data looks like inside each layer."""

from pgu_lightning.statistics import conv as _conv  # noqa: F401  registers its form of the Gram
from pgu_lightning.statistics.collector import Collector
from pgu_lightning.statistics.gram import Gram
from pgu_lightning.statistics.layers import weight_of
from pgu_lightning.statistics.space import Fulfilled, Provenance, RetainSpace, fingerprint
from pgu_lightning.statistics.survey import LayerInfo, canonical, named_layers, survey

__all__ = [
    "Collector",
    "Fulfilled",
    "Gram",
    "LayerInfo",
    "Provenance",
    "RetainSpace",
    "canonical",
    "fingerprint",
    "named_layers",
    "survey",
    "weight_of",
]
