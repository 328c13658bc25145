"""Check the models of a merge before their weights are downloaded from the hub: configs, tokenizers, headers."""

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from model_merging_methods.merge_request import MergeRequest
from utils.errors import UserError
from utils.model_folders import written_place


@contextmanager
def request_of_headers(make_request: Callable[[Path], MergeRequest]) -> Iterator[tuple[MergeRequest, dict[str, str]]]:
    """The merge, and the names of the models that are not on this machine by the folders of their headers. A UserError
    of the block gets these names.

    `make_request(folder)`: the merge, with the headers of such models below this folder."""
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary).resolve()
        try:
            request = make_request(place)
            yield request, _names_below(place)
        except UserError as error:
            raise UserError(with_names(str(error), _names_below(place))) from None


def _names_below(place: Path) -> dict[str, str]:
    return {str(folder): written_place(folder) for folder in sorted(place.glob("*/snapshots/*"))}


def with_names(text: str, names: Mapping[str, str]) -> str:
    """A text with the names of models for their folders."""
    for folder, name in names.items():
        text = text.replace(folder, name)
    return text


def check_before_download(make_request: Callable[[Path], MergeRequest]) -> None:
    """Raise UserError if names, shapes, configs or tokenizers alone show that models cannot be merged.

    With all models here, or without the headers of one, nothing is checked."""
    with request_of_headers(make_request) as (request, names):
        if not names or not request.has_headers:
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
            raise UserError(f"{finding.text} (found before the download of weights)")
