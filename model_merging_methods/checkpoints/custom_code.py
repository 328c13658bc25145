"""Report checkpoints that come with code, which is never executed here."""

from collections.abc import Mapping

from model_merging_methods.checkpoints.checkpoint_folder import CheckpointFolder
from utils.custom_code import code_modules
from utils.findings import Findings


def check_custom_code(models: Mapping[str, CheckpointFolder], findings: Findings) -> None:
    """Report models, by role, whose config names code."""
    named: dict[str, list[str]] = {}
    for role, model in models.items():
        modules = code_modules(model.config)
        if modules:
            named.setdefault(", ".join(modules), []).append(role)
    for modules, roles in named.items():
        findings.warn(
            f"config.json: auto_map of {' and '.join(roles)} names code ({modules}), which is never run here; the "
            "merged folder has a copy of the code files"
        )
