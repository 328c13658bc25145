"""Check the models of a merge before their weights are downloaded from the hub: configs, tokenizers, headers."""

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from model_merging_methods.merge_request import MergeRequest
from utils.errors import UserError


def check_before_download(make_request: Callable[[Path], MergeRequest]) -> None:
    """Raise UserError if names, shapes, configs or tokenizers alone show that models cannot be merged.

    `make_request(folder)`: the merge, with the headers of models that are not on this machine below this folder. With
    all models here, or with weights that are not safetensors, nothing is checked."""
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary).resolve()
        request = make_request(place)
        fetched = [folder for _, folder in request.all_folders() if folder.is_relative_to(place)]
        if not fetched or not all(any(folder.glob("*.safetensors")) for folder in fetched):
            return
        # Slow to import, and not needed without a download.
        from model_merging_methods.preflight import check_inputs
        from model_merging_methods.recipes.opening import open_recipe

        with ExitStack() as stack:
            if request.recipe is not None:
                _, findings = open_recipe(request, stack)
            else:
                _, findings = check_inputs(request, stack, allow_unrelated=True, roles=())
        for finding in findings.errors[:1]:
            text = finding.text
            for folder in fetched:
                text = text.replace(str(folder), folder.name.replace("--", "/", 1))
            raise UserError(f"{text} (found before the download of weights)")
