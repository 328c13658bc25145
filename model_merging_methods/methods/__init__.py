"""The merging methods, one file each, found by name."""

from model_merging_methods.finding import found
from model_merging_methods.method import Method

METHODS: dict[str, Method] = found(__name__, __path__, Method)
