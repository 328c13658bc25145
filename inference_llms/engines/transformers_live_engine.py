"""transformers with weights that are replaced while the model is loaded."""

import hashlib
from pathlib import Path

import torch

from inference_llms.engines.live_engine import Weights
from inference_llms.engines.model_loading import generation_config
from inference_llms.engines.transformers import TransformersEngine, end_tokens
from utils.errors import UserError
from utils.transformers_classes import AutoTokenizer


class TransformersLiveEngine(TransformersEngine):
    """As `TransformersEngine`, for `live_engine.LiveEngine`; on one GPU, or on the CPU."""

    def __init__(self, model_folder: Path, engine_dtype: str = "float32"):
        super().__init__(model_folder, any(model_folder.glob("*.safetensors")), engine_dtype)

    @torch.no_grad()
    def replace_weights(self, weights: Weights) -> None:
        own = self._model.state_dict(keep_vars=True)
        filled = set()
        for name, tensor in weights:
            if name not in own or own[name].shape != tensor.shape:
                raise UserError(
                    f"{self._folder}: transformers holds no tensor {name} of this shape that could be replaced; choose "
                    "--backend vllm"
                )
            own[name].copy_(tensor)
            filled.add(own[name].data_ptr())
        for name, tensor in own.items():
            if tensor.data_ptr() not in filled:  # tied ones share their memory with a filled one
                raise UserError(f"{self._folder}: the models lack tensor {name}; copy or download them again")

    def take_tokenizer(self, folder: Path) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        self._model.generation_config = generation_config(folder)
        self._end_tokens = end_tokens(self._tokenizer, self._model)

    def checksum(self) -> str:
        digest = hashlib.sha256()
        for name, tensor in sorted(self._model.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.contiguous().cpu().view(torch.uint8).numpy())
        return digest.hexdigest()
