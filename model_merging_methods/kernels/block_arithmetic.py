"""What can be done with the values of a block, whatever does it."""

from typing import Protocol

import numpy as np

from model_merging_methods.kernels.block_kernels import Brackets, StoredBlock, Sums, Undecided
from model_merging_methods.kernels.compiled_arithmetic import COMPILED_METHODS, CompiledArithmetic
from model_merging_methods.kernels.magnitude_thresholds import BlockCounts
from model_merging_methods.merge_parameters import MergeParameters
from model_merging_methods.merging_methods import Coefficients
from utils.errors import UserError


class Arithmetic(Protocol):
    """Several threads may use it at once. Every function returns, first or alone, 0; or a bit for each model (the
    first the pretrained one's) in which the block holds values that are not finite."""

    def room(self, rows: int, size: int) -> np.ndarray:
        """Memory for stored blocks: uint8 [rows, size]."""

    def merge(
        self, coefficients: Coefficients, block: StoredBlock, output_dtype: int, output: np.ndarray, sums: Sums
    ) -> int:
        """Merge a block into `output`, bytes of the dtype with that code, adding to `sums`. Returns −1 where a
        merged value does not fit that dtype."""

    def compare(self, block: StoredBlock, sums: Sums) -> int:
        """Add to `sums` what a block tells of its unmasked models."""

    def magnitudes(self, block: StoredBlock, masks: bool) -> tuple[int, np.ndarray]:
        """|δi| of the masked models if `masks`, else of what the mask falls on: float32 [K, size]."""

    def count(self, block: StoredBlock, brackets: Brackets, masks: bool, room: Undecided) -> tuple[int, BlockCounts]:
        """Compare these magnitudes with brackets; the undecided values are put into `room`."""


def choose_device(asked: str) -> str:
    """cpu or cuda, for one of `merge_parameters.DEVICES`: auto is cuda where there is one.

    Raises UserError for cuda where there is none.
    """
    has_gpu = asked != "cpu" and _has_gpu()
    if asked == "cuda" and not has_gpu:
        raise UserError("--device cuda: torch finds no GPU here; take --device cpu")
    return "cuda" if has_gpu else "cpu"


def open_arithmetic(device: str, parameters: MergeParameters, models: int) -> Arithmetic:
    """The arithmetic of a merge of `models` fine-tuned models on a device, cpu or cuda. A method that has no compiled
    kernel goes by its formula."""
    if device == "cpu" and parameters.method in COMPILED_METHODS:
        return CompiledArithmetic(parameters, models)

    from model_merging_methods.kernels.torch_arithmetic import TorchArithmetic

    return TorchArithmetic(parameters, models, device)


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()
