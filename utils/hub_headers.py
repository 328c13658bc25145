"""A hub model without its weights: small files, and weight files that hold only their headers.

Such a folder shows names, shapes and dtypes of all tensors, which a check reads before anything large is downloaded.
"""

import shutil
from pathlib import Path

from utils.errors import UserError

_FIRST_BYTES = 100_000  # most headers are shorter, so that one request is enough
_PARTIAL_CONTENT = 206  # HTTP status
_MARK = ".holds_headers_only"
_LENGTH = 8  # bytes at the start of a safetensors file: the size of its header, little-endian


def holds_headers_only(folder: Path) -> bool:
    return (folder / _MARK).exists()


def lacks_headers(folder: Path) -> bool:
    """Whether not even headers of a hub model are here: of other weights than safetensors, or from a server that only
    sends whole files."""
    return holds_headers_only(folder) and not any(folder.glob("*.safetensors"))


def write_headers(hub_id: str, commit: str, small_files: Path, weights: dict[str, int], place: Path) -> None:
    """Write the model's folder into `place`: a copy of `small_files`, and each of the `weights` (sizes in bytes by
    name) as a file of that size with nothing behind its header, which takes no space on the disk. From a server that
    only sends whole files, no weights are written.

    Raises UserError for a file that is not safetensors."""
    shutil.copytree(small_files, place)
    (place / _MARK).touch()
    headers = {}
    for name, size in weights.items():
        header = _first_bytes(hub_id, commit, name, min(_FIRST_BYTES, size))
        if header is None:
            return
        length = _LENGTH + int.from_bytes(header[:_LENGTH], "little")
        if not _LENGTH < length <= size:
            raise UserError(f"{hub_id}: {name} is not a safetensors file; choose another revision")
        headers[name] = header if length <= len(header) else _first_bytes(hub_id, commit, name, length)
        headers[name] = headers[name][:length]
    for name, header in headers.items():
        with open(place / name, "wb") as file:
            file.write(header)
            file.truncate(weights[name])


def _first_bytes(hub_id: str, commit: str, name: str, number: int) -> bytes | None:
    """The first bytes of a file on the hub; None if its server does not send parts of files."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    headers = {**build_hf_headers(), "Range": f"bytes=0-{number - 1}"}
    url = hf_hub_url(hub_id, name, revision=commit)
    with get_session().stream("GET", url, headers=headers, follow_redirects=True) as answer:
        hf_raise_for_status(answer)
        return answer.read() if answer.status_code == _PARTIAL_CONTENT else None
