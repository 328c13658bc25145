"""Read config files as transformers does, without its messages."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers.utils import logging


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence the lines that transformers prints on stderr about a checkpoint that it loads."""
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
    """The settings of a `config.json` as transformers reads them, in their current spelling, with the defaults of the
    model's family; None if transformers does not know the family or refuses the config."""
    from transformers import AutoConfig

    own = {key: value for key, value in config.items() if key not in ("quantization_config", "auto_map")}
    try:
        with quiet_transformers():
            filled = AutoConfig.for_model(**own)
            known = type(filled)().to_dict().keys()
            return {key: value for key, value in filled.to_dict().items() if key in known}
    except Exception:  # each family raises another kind
        return None


def knows_model_type(model_type: Any) -> bool:
    """Whether transformers has a config class for a `model_type`."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    return isinstance(model_type, str) and model_type in CONFIG_MAPPING_NAMES


def why_no_generation_config(content: dict[str, Any]) -> str | None:
    """Why transformers refuses a `generation_config.json` with this content; None if it accepts it."""
    from transformers import GenerationConfig

    try:
        with quiet_transformers():
            GenerationConfig.from_dict(dict(content))
    except Exception as error:  # of several kinds
        return " ".join(str(error).split())[:150]
    return None
