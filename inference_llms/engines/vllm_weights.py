"""Replace weights inside vLLM's workers: vLLM adds these methods to its own worker class."""

import hashlib
import pickle
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn

_ROWS_AT_ONCE = 256


class ReplaceableWeights:
    """Weights come pickled, as an object that computes them: see `engine.Weights`."""

    def replace_weights(self, pickled: bytes) -> None:
        """Load these weights as if they were the checkpoint's, into the existing tensors: vLLM joins, slices and
        packs them for this worker, and its captured graphs stay valid. Raises ValueError if a parameter gets none.
        """
        from vllm.config import set_current_vllm_config

        with set_current_vllm_config(self.vllm_config):
            _reload(self.model_runner.get_model(), pickle.loads(pickled), self.model_runner.model_config)

    def checksum_of_weights(self) -> str:
        """A hash of this worker's parameters and of the packed weights of its linear layers."""
        from vllm.model_executor.model_loader.weight_checksum import compute_tensor_digests

        model = self.model_runner.get_model()
        digests = compute_tensor_digests(model)
        for name, layer in model.named_modules():
            if hasattr(layer, "cpu_linear"):
                digests[f"{name} packed"] = _digest_of_packed(layer, self.model_runner.model_config.dtype)
        return hashlib.sha256(repr(sorted(digests.items())).encode()).hexdigest()


def _reload(model: "nn.Module", weights: Iterable[tuple[str, "Tensor"]], model_config) -> None:
    """Run vLLM's reload, which processes each filled layer again, and the steps that it leaves out on the CPU.

    A tied head gets no separate weights, so vLLM does not process it again and would continue with its packed copy of
    the old embeddings. Fused experts are packed only while they have no kernel; with one, their new weights would be
    read as packed although they are not.
    """
    from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

    names = {name for name, _ in model.named_parameters()}
    tied = list(_tied_layers(model))
    for layer in _packed_experts(model):
        layer.quant_method.moe_kernel = None
    initialize_layerwise_reload(model)
    loaded = model.load_weights(iter(weights))
    finalize_layerwise_reload(model, model_config)
    missing = sorted(names - loaded) if loaded is not None else []
    if missing:
        raise ValueError(f"it loads no weights into {missing[0]} and {len(missing) - 1} other parameters")
    for layer in tied:
        layer.quant_method.process_weights_after_loading(layer)


def _tied_layers(model: "nn.Module") -> Iterator["nn.Module"]:
    """The layers whose every parameter belongs to an earlier layer."""
    from vllm.model_executor.layers.quantization.base_config import QuantizeMethodBase

    seen: set[int] = set()
    for layer in model.modules():
        own = {id(parameter) for parameter in layer.parameters(recurse=False)}
        if own and own <= seen and isinstance(getattr(layer, "quant_method", None), QuantizeMethodBase):
            yield layer
        seen |= own


def _packed_experts(model: "nn.Module") -> Iterator["nn.Module"]:
    """The layers of fused experts on the CPU. On GPUs vLLM copies weights into the kernel's own tensors."""
    for layer in model.modules():
        has_kernel = getattr(getattr(layer, "quant_method", None), "moe_kernel", None) is not None
        if has_kernel and all(parameter.device.type == "cpu" for parameter in layer.parameters(recurse=False)):
            yield layer


def _digest_of_packed(layer: "nn.Module", dtype) -> str:
    """A hash of a layer's weights, read back by multiplying with unit vectors: no packed layout can be read directly,
    and the product with a unit vector is exact."""
    import torch

    digest = hashlib.sha256()
    width = getattr(layer, "input_size_per_partition", None) or layer.embedding_dim
    with torch.inference_mode():
        for start in range(0, width, _ROWS_AT_ONCE):
            unit = torch.eye(min(_ROWS_AT_ONCE, width - start), width, dtype=dtype).roll(start, 1)
            columns = layer.quant_method.apply(layer, unit, None)
            digest.update(columns.contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()
