"""The classes of transformers that this project uses, brought in without scikit-learn.

transformers imports scikit-learn, wherever it is installed, for an option of assisted decoding that nothing here uses,
and every command would start two seconds later.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import transformers.utils
from transformers.utils import logging

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
    "config_with_defaults",
    "knows_model_type",
    "quiet_transformers",
    "why_no_generation_config",
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


def config_with_defaults(config: dict[str, Any]) -> dict[str, Any] | None:
    """The settings of a `config.json` as transformers reads them, in their present spelling, with the defaults of the
    model's family; None where transformers does not know the family or refuses the config."""
    own = {key: value for key, value in config.items() if key not in ("quantization_config", "auto_map")}
    try:
        with quiet_transformers():
            filled = AutoConfig.for_model(**own)
            known = type(filled)().to_dict().keys()
            return {key: value for key, value in filled.to_dict().items() if key in known}
    except Exception:  # as many kinds as there are families
        return None


def knows_model_type(model_type: Any) -> bool:
    """Whether transformers has a config class for a `model_type`."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    return isinstance(model_type, str) and model_type in CONFIG_MAPPING_NAMES


def why_no_generation_config(content: dict[str, Any]) -> str | None:
    """Why transformers refuses a `generation_config.json` of this content; None where it does not."""
    try:
        with quiet_transformers():
            GenerationConfig.from_dict(dict(content))
    except Exception as error:  # of several kinds
        return " ".join(str(error).split())[:150]
    return None
