"""Models that attacks work with, by folder or hub id: missing ones and broken ones told in one line."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import model_info

from promptbench.missing_part import MissingPart
from utils.errors import UserError
from utils.transformers_configs import quiet_transformers


@contextmanager
def part_of_attack(option: str, path_or_hub_id: str, public_model: str) -> Iterator[bool]:
    """Turn what a package raises on a model that is not there into MissingPart, and on a folder that it cannot load
    into UserError, and keep transformers quiet beside that.

    Gives whether to look on this machine alone: for a folder, and where the hub does not answer, which packages find
    out after a minute of trying. `public_model`: the hub id of one that will do.
    """
    is_folder = Path(path_or_hub_id).is_dir()
    try:
        with quiet_transformers():
            yield is_folder or not _on_hub(path_or_hub_id)
    except UserError:
        raise
    except Exception as error:
        # The packages raise errors of many unrelated kinds, on folders as on the hub.
        if not is_folder and "trust_remote_code" not in str(error):
            raise MissingPart(
                f"--{option} {path_or_hub_id}: no such folder, and not to be had from the hub; download "
                f"https://huggingface.co/{public_model} where there is a connection, and give its folder"
            ) from error
        reason = " ".join(str(error).split())[:300]
        if "trust_remote_code" in str(error):
            raise UserError(
                f"--{option} {path_or_hub_id} needs code that comes with it, which is never run here; give another "
                f"({reason})"
            ) from error
        raise UserError(
            f"--{option} {path_or_hub_id}: cannot be loaded ({type(error).__name__}: {reason}); copy or download it "
            "again, or give another"
        ) from error


def _on_hub(hub_id: str) -> bool:
    try:
        model_info(hub_id)
    except Exception:  # the hub's and the network's, of many kinds
        return False
    return True
