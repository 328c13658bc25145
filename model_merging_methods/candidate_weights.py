"""Many merges of the same models, whose weights go into a running engine instead of files."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from model_merging_methods.checkpoints.checkpoint_writer import TensorForm, plan_shards
from model_merging_methods.checkpoints.model_files import output_forms, write_model_files
from model_merging_methods.comparison import check_related
from model_merging_methods.engine import Merge
from model_merging_methods.kernels.stored_dtypes import LONG_NAMES
from model_merging_methods.merge_parameters import MergeParameters, parameters_of
from model_merging_methods.merge_request import MergeRequest
from model_merging_methods.opened_models import OpenedModels
from model_merging_methods.preflight import check_inputs
from model_merging_methods.statistics import Statistics

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)

_AT_ONCE = 256_000_000  # bytes of merged weights in memory, or one tensor


@dataclass(frozen=True)
class CandidateWeights:
    """The weights that a merge would save, computed from the checkpoints each time they are iterated.

    This object is small enough to send to other processes, which compute the same bytes from the same files. A process
    keeps the checkpoints of the last models open.
    """

    pretrained: Path
    finetuned: tuple[tuple[str, Path], ...]
    parameters: MergeParameters
    statistics: Statistics

    def __iter__(self) -> Iterator[tuple[str, "Tensor"]]:
        """(name, tensor) for every tensor of the merged checkpoint, in its order and dtype."""
        import torch

        opened = _open_once(self.pretrained, self.finetuned, self.parameters.exclude_param_names_regex)
        merge = opened.parts[0].merge(self.parameters)
        forms = output_forms(opened.aligned, self.parameters)
        for shard in plan_shards(forms, _AT_ONCE):
            output = {name: np.empty(forms[name].bytes, np.uint8) for name in shard.names}
            merge.merge_into_memory(output, forms, self.statistics)
            for name in shard.names:
                yield name, torch.from_numpy(output[name]).view(_torch_dtype(forms[name])).view(forms[name].shape)


class CandidateMerges:
    """Merges of a pretrained model's fine-tunes, by role, that differ in their parameters.

    Statistics are computed once for merges that differ only in ratios and in numbers that no statistic depends on, such
    as SLERP's t: thresholds of trimming and of masks by magnitude, majority signs, inner products. Trimmed, elected and
    masked values are computed again in every merge, which takes less time than reading them from memory.
    """

    def __init__(self, pretrained: Path, finetuned: Mapping[str, Path]):
        self._pretrained = pretrained
        self._finetuned = tuple(finetuned.items())
        self._statistics: dict[MergeParameters, Statistics] = {}

    def check(self, parameters: MergeParameters, allow_unrelated: bool) -> None:
        """Raise UserError for models that cannot be merged this way or, unless `allow_unrelated`, are unrelated."""
        parameters.check(len(self._finetuned))
        with ExitStack() as stack:
            request = MergeRequest(self._pretrained, dict(self._finetuned), parameters)
            _, findings = check_inputs(request, stack, allow_unrelated)
        findings.stop_at_errors()
        for warning in findings.warnings:
            log.warning("warning: %s", warning.text)
        merge = self._merge(parameters)
        if not allow_unrelated:
            check_related(merge)

    def weights(self, parameters: MergeParameters) -> CandidateWeights:
        """The weights of one merge. Raises UserError for parameters that make no sense."""
        parameters.check(len(self._finetuned))
        independent = dict.fromkeys(parameters.declared.numbers_after_statistics, 1.0)
        without_ratio = replace(parameters, mixup=None).with_options(**independent)
        if without_ratio not in self._statistics:
            self._statistics[without_ratio] = self._merge(without_ratio).statistics()
        return CandidateWeights(self._pretrained, self._finetuned, parameters, self._statistics[without_ratio])

    def write_model_files(self, folder: Path, role: str, parameters: MergeParameters) -> None:
        """Put a merge's configs and the tokenizer of `role` into a folder, without weights."""
        opened = _open_once(self._pretrained, self._finetuned, parameters.exclude_param_names_regex)
        request = MergeRequest(self._pretrained, dict(self._finetuned), parameters)
        write_model_files(request, opened.aligned, role, folder)

    def _merge(self, parameters: MergeParameters) -> Merge:
        opened = _open_once(self._pretrained, self._finetuned, parameters.exclude_param_names_regex)
        return opened.parts[0].merge(parameters)


@lru_cache(maxsize=1)
def _open_once(
    pretrained: Path, finetuned: tuple[tuple[str, Path], ...], exclude_param_names_regex: tuple[str, ...]
) -> OpenedModels:
    """The models, open until the process ends."""
    parameters = parameters_of("average_merging", exclude_param_names_regex=exclude_param_names_regex)
    request = MergeRequest(pretrained, dict(finetuned), parameters)
    opened, findings = check_inputs(request, ExitStack(), allow_unrelated=True, roles=())  # `check` was stricter
    findings.stop_at_errors()
    return opened


def _torch_dtype(form: TensorForm):
    import torch

    return getattr(torch, LONG_NAMES[form.dtype])
