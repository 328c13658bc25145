"""Merges of every kind. Without transformers, which processes that are made to be killed have no use for."""

from pathlib import Path

from model_merging_methods.merge_request import Mask, MergeParameters, MergeRequest, Mixup

ROLES = ("instruct", "math", "code")
DARE = Mask(0.3, use_weight_rescale=True)
MERGES = {
    "average": MergeParameters("average_merging"),
    "average M3": MergeParameters("average_merging", mixup=Mixup((0.5, 0.2, 0.3))),
    "task arithmetic": MergeParameters("task_arithmetic", scaling_coefficient=0.7),
    "TIES": MergeParameters("ties_merging"),
    "TIES M3": MergeParameters("ties_merging", mixup=Mixup((0.5, 0.2, 0.3))),
    "DARE average": MergeParameters("average_merging", mask=DARE),
    "DARE task arithmetic M3": MergeParameters("task_arithmetic", mask=DARE, mixup=Mixup((0.5, 0.2, 0.3))),
    "DARE TIES": MergeParameters("ties_merging", mask=DARE),
    "magnitude mask TIES": MergeParameters("ties_merging", mask=Mask(0.3, mask_strategy="magnitude")),
    "random mask of weights": MergeParameters("average_merging", mask=Mask(0.3, weight_format="finetuned_weight")),
}


def request(models: Path, parameters: MergeParameters, roles=ROLES) -> MergeRequest:
    return MergeRequest(models / "base", {role: models / role for role in roles}, parameters)
