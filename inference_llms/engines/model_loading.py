"""Load configs, tokenizers and models with transformers, and report failures in one line."""

import functools
import pickle
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from inference_llms.engines.chat_templates import tokens_of_chats
from inference_llms.engines.engine import Chat, Prompt
from utils.errors import UserError
from utils.json_files import read_json_object
from utils.transformers_configs import quiet_transformers
from utils.weight_files import INNER_WRAPPERS, OUTER_WRAPPERS

# Prefixes that training leaves on tensor names, and the wrapper that adds each.
WRAPPERS = INNER_WRAPPERS | OUTER_WRAPPERS
JSON_FILES = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")


@contextmanager
def refusals_in_one_line(model_folder: Path, package: str) -> Iterator[None]:
    """Raise UserError with the reason if `package` cannot load a model. Silences transformers."""
    try:
        for name in JSON_FILES:
            if (model_folder / name).is_file():
                read_json_object(model_folder / name, "copy or download it again")
        with quiet_transformers():
            yield
    except UserError:
        raise
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{model_folder}: a weight file (*.bin) is broken or holds more than tensors, which is not safe to load; "
            "download the model again, as safetensors"
        ) from error
    except Exception as error:
        # The packages raise many unrelated errors for bad folders.
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"{model_folder}: {package} cannot load this model ({type(error).__name__}: {reason}); {_remedy(error)}"
        ) from error


def _remedy(error: Exception) -> str:
    if isinstance(error, ImportError):  # of the package that a quantised model needs
        return "install that package, choose another --backend, or run an unquantised model"
    if "trust_remote_code" in str(error):
        return "a checkpoint's code is never run; choose a model that transformers supports itself"
    if "Unrecognized configuration class" in str(error):
        return "choose a model that continues text"
    return "copy or download it again, or choose another --backend"


def load_config(model_folder: Path) -> PreTrainedConfig:
    """The config of a model with attention. Raises UserError for a model without, such as Mamba."""
    config = AutoConfig.from_pretrained(model_folder, trust_remote_code=False)
    if getattr(config.get_text_config(), "num_attention_heads", None) is None:
        raise UserError(
            f"{model_folder}: a {config.model_type} model has no attention heads, and only models with attention "
            "are supported; choose another model"
        )
    return config


def open_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


def generation_config(model_folder: Path) -> GenerationConfig:
    """The model's sampling defaults and stop tokens, from its generation config, else from its config."""
    with quiet_transformers():
        if (model_folder / "generation_config.json").is_file():
            return GenerationConfig.from_pretrained(model_folder)
        return GenerationConfig.from_model_config(load_config(model_folder))


def load_model(model_folder: Path | None, model_class: type = AutoModelForCausalLM, **options: Any) -> PreTrainedModel:
    """Load a model with `options` of `from_pretrained`. Without a folder, they include a `state_dict`.

    Raises UserError if a tensor is missing or has another shape: transformers itself would continue with
    random numbers there.
    """
    model, info = model_class.from_pretrained(
        model_folder, output_loading_info=True, ignore_mismatched_sizes=True, trust_remote_code=False, **options
    )
    if info["missing_keys"]:
        raise UserError(_missing_tensors(model_folder, sorted(info["missing_keys"]), sorted(info["unexpected_keys"])))
    for name, stored, needed in sorted(info["mismatched_keys"]):
        raise UserError(
            f"{model_folder}: tensor {name} has the shape {' x '.join(map(str, stored))}, but config.json needs "
            f"{' x '.join(map(str, needed))}; copy or download the model again"
        )
    return model


def _missing_tensors(model_folder: Path, missing: list[str], unexpected: list[str]) -> str:
    wrapper = next((name for name in WRAPPERS if unexpected and all(key.startswith(name) for key in unexpected)), None)
    if wrapper is not None:
        return (
            f"{model_folder}: its tensor names begin with {wrapper}, added by {WRAPPERS[wrapper]}; save the inner model"
        )
    lacks = f"{model_folder} lacks tensor {missing[0]}" + (f" and {len(missing) - 1} more" if missing[1:] else "")
    instead = f", and holds {len(unexpected)} that it does not need ({unexpected[0]})" if unexpected else ""
    return f"{lacks}{instead}; copy or download the model again, or save it as a causal language model"


def check_weights(model_folder: Path, config: PreTrainedConfig) -> None:
    """Raise UserError as `load_model` does, but read only the headers of the weight files. For engines that ignore
    missing tensors."""
    # Quantised checkpoints name their tensors in ways that only their engine knows.
    if getattr(config, "quantization_config", None) is None:
        load_model(model_folder, device_map="meta")


def model_without_weights(model_folder: Path, config: PreTrainedConfig, dtype: str, device: str) -> PreTrainedModel:
    """A model of the config's shape, with arbitrary weights and the folder's generation config."""
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype), trust_remote_code=False)
    model.generation_config = generation_config(model_folder)
    return model


def checkpoint_dtype(config: PreTrainedConfig) -> str:
    """The name of the dtype in a checkpoint's config; float32 if it names none."""
    dtype = config.get_text_config().dtype or config.dtype
    return str(dtype or "float32").removeprefix("torch.")


def dtype_in_transformers(checkpoint: str, engine_dtype: str) -> str:
    """The dtype in which the transformers engine computes, for a checkpoint of dtype `checkpoint`.

    On GPUs the checkpoint's own, except float16 for float32, as in the paper. On the CPU float32; with `engine_dtype`
    auto, bfloat16 for bfloat16 checkpoints, if the processor has instructions for it.
    """
    if torch.cuda.device_count() > 0:
        return "float16" if checkpoint == "float32" else checkpoint
    capabilities = torch.cpu.get_capabilities()
    is_fast = any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return "bfloat16" if engine_dtype == "auto" and checkpoint == "bfloat16" and is_fast else "float32"


def widest_split(config: PreTrainedConfig, gpus: int) -> int:
    """The largest tensor-parallel size for a model on this many GPUs; 1 without a GPU.

    It must divide the attention heads, and either divide the heads of keys and values or be a multiple of them.
    """
    config = config.get_text_config()
    heads = config.num_attention_heads
    shared = getattr(config, "num_key_value_heads", None) or heads
    sizes = range(1, max(gpus, 1) + 1)
    return max(size for size in sizes if heads % size == 0 and (shared % size == 0 or size % shared == 0))


def context_length(config: PreTrainedConfig) -> int:
    """The number of tokens, prompt and completion together, that the model supports."""
    config = config.get_text_config()
    length = getattr(config, "max_position_embeddings", None) or sys.maxsize
    rope = getattr(config, "rope_parameters", None) or {}
    # These two stretch the length in the config; for all other types it is already the stretched length.
    if rope.get("rope_type") in ("linear", "dynamic"):
        length = int(length * rope.get("factor", 1.0))
    return length


def cache_bytes_per_token(config: PreTrainedConfig, itemsize: int) -> int:
    """Bytes of keys and values that attention keeps for each token, at `itemsize` bytes a number."""
    config = config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * config.num_hidden_layers * heads * width * itemsize


def tokens_of_prompts(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt], context: int
) -> list[list[int] | None]:
    """The `prompt_tokens` of each prompt. None for a prompt that leaves no room for a completion in `context` tokens,
    or that has no token to start from; a line on stderr reports how many there are."""
    if not prompts:
        return []
    tokens = prompt_tokens(tokenizer, prompts)
    too_long = sum(len(ids) >= context for ids in tokens)
    if too_long:
        print(
            f"{too_long} of {len(prompts)} prompts fill the model's context of {context} tokens; "
            "they get empty completions",
            file=sys.stderr,
        )
    if not all(tokens):
        print("a prompt without any token gets an empty completion", file=sys.stderr)
    return [ids if 0 < len(ids) < context else None for ids in tokens]


def prompt_tokens(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt]) -> list[list[int]]:
    """Each prompt's token ids: a text's with the special tokens that the tokenizer puts in front, a chat's as its
    template has them. All prompts are of one kind. Raises UserError for chats if there is no chat template."""
    if isinstance(prompts[0], Chat):
        return tokens_of_chats(tokenizer, prompts)
    return _tokens_of_texts(tokenizer, prompts) if isinstance(prompts[0], str) else list(map(list, prompts))


def _tokens_of_texts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """The token ids of texts. Tokens that the tokenizer appends are dropped: after an end token a model begins another
    text (training frameworks leave `add_eos_token` on)."""
    tokens = tokenizer(list(texts), verbose=False)["input_ids"]
    end = _appended_tokens(tokenizer)
    if end:
        _report_appended_tokens(" ".join(tokenizer.convert_ids_to_tokens(end)))
        tokens = [ids[: -len(end)] if ids[-len(end) :] == end else ids for ids in tokens]
    return tokens


def _appended_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that a tokenizer appends to every text."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    starts = [start for start in range(len(whole)) if plain and whole[start : start + len(plain)] == plain]
    return whole[starts[0] + len(plain) :] if starts else []


@functools.cache
def _report_appended_tokens(names: str) -> None:
    # Reported once, and on stdout, because this is not an error.
    print(f"the tokenizer adds {names} to the end of every prompt; prompts are run without it")
