"""The classes of transformers that this project uses, brought in without scikit-learn.

transformers imports scikit-learn, wherever it is installed, for an option of assisted decoding that nothing here uses,
and every command would start two seconds later.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import transformers.utils
from transformers.utils import logging

_is_sklearn_available = transformers.utils.is_sklearn_available
transformers.utils.is_sklearn_available = lambda: False
try:
    import transformers.generation.candidate_generator
finally:
    transformers.utils.is_sklearn_available = _is_sklearn_available

from transformers import (  # noqa: E402
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoTokenizer,
    Cache,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

__all__ = [
    "AutoConfig",
    "AutoModelForCausalLM",
    "AutoModelForMaskedLM",
    "AutoTokenizer",
    "Cache",
    "GenerationConfig",
    "PreTrainedConfig",
    "PreTrainedModel",
    "PreTrainedTokenizerBase",
    "quiet_transformers",
]


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep back what transformers says of a checkpoint that it loads, on several lines of stderr."""
    verbosity, had_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if had_bars:
            logging.enable_progress_bar()
