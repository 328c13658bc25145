"""The classes of transformers that this project uses, brought in without scikit-learn.

transformers imports scikit-learn, wherever it is installed, for an option of assisted decoding that nothing here uses,
and every command would start two seconds later.
"""

import transformers.utils

_is_sklearn_available = transformers.utils.is_sklearn_available
transformers.utils.is_sklearn_available = lambda: False
try:
    import transformers.generation.candidate_generator
finally:
    transformers.utils.is_sklearn_available = _is_sklearn_available

# What it warns of is for programmers, and would be on the screen of every run.
transformers.utils.logging.set_verbosity_error()

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
]
