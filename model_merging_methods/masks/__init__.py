"""The masks, one file each, found by name."""

from model_merging_methods.finding import found
from model_merging_methods.method import MaskMethod

MASKS: dict[str, MaskMethod] = found(__name__, __path__, MaskMethod)
