"""The interface of engines whose weights can be replaced while they run, and how a machine gets one."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from inference_llms.engines.engine import (
    Engine,
    check_engine_request,
    resolve_backend,
    say_what_transformers_leaves_out,
)

if TYPE_CHECKING:
    from torch import Tensor


class Weights(Protocol):
    """The weights of a model, under the names and in the shapes of its checkpoint; may be pickled, for processes that
    compute them separately. Iterated once for each replacement."""

    def __iter__(self) -> Iterator[tuple[str, "Tensor"]]: ...


class LiveEngine(Engine, Protocol):
    """An engine that completes with the weights and the tokenizer that it was given last; before the first weights its
    completions mean nothing."""

    def replace_weights(self, weights: Weights) -> None:
        """Put these weights in place, and forget what was computed with those before. Raises UserError where the
        model lacks a tensor of that name and shape, or a weight of the model is not among them."""
        ...

    def take_tokenizer(self, folder: Path) -> None:
        """Take the tokenizer and the stop tokens of this folder for prompts and completions from now on."""
        ...

    def checksum(self) -> str:
        """A hash of all weights that the engine computes with: equal for two engines of one kind, size and dtype
        exactly where they hold the same bits."""
        ...


def open_live_engine(
    backend: str,
    folder: Path,
    tensor_parallel_size: int | None,
    pipeline_parallel_size: int,
    executor: str | None = None,
    engine_dtype: str = "float32",
) -> LiveEngine:
    """An engine for the model whose config and tokenizer are in `folder`; no weights need to be.

    As `engine.open_engine` except for that. `executor`: what starts vLLM's workers, mp or ray; None: vLLM chooses.
    """
    check_engine_request(backend, tensor_parallel_size, pipeline_parallel_size, executor)
    if resolve_backend(backend) == "vllm":
        from inference_llms.engines.vllm_live_engine import VllmLiveEngine

        return VllmLiveEngine(folder, tensor_parallel_size, pipeline_parallel_size, executor)
    from inference_llms.engines.transformers_live_engine import TransformersLiveEngine

    say_what_transformers_leaves_out(tensor_parallel_size, pipeline_parallel_size)
    return TransformersLiveEngine(folder, engine_dtype)
