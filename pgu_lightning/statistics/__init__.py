"""What the training data looks like inside each layer."""

from pgu_lightning.statistics import conv as _conv  # noqa: F401  registers its form of the sum
from pgu_lightning.statistics.collector import Collector
from pgu_lightning.statistics.gram import Gram
from pgu_lightning.statistics.layers import weight_of
from pgu_lightning.statistics.memory import check_room, free_on, gram_bytes, in_words, offloaded
from pgu_lightning.statistics.space import Fulfilled, Provenance, RetainSpace, fingerprint
from pgu_lightning.statistics.survey import LayerInfo, biases, canonical, named_layers, survey

__all__ = [
    "Collector",
    "Fulfilled",
    "Gram",
    "LayerInfo",
    "Provenance",
    "RetainSpace",
    "biases",
    "canonical",
    "check_room",
    "fingerprint",
    "free_on",
    "gram_bytes",
    "in_words",
    "named_layers",
    "offloaded",
    "survey",
    "weight_of",
]
