"""The state of an unfinished merge, from which the next run resumes."""

import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from model_merging_methods.checkpoints.checkpoint_writer import Shard
from model_merging_methods.engine import TensorReport
from model_merging_methods.statistics import Statistics
from utils.content_hashes import read_tensor_digest
from utils.errors import UserError
from utils.safetensors_files import read_at, read_header
from utils.whole_files import empty_folder, write_json

log = logging.getLogger(__name__)

PROGRESS_FILE = "merge_progress.json"


@dataclass(frozen=True)
class _State:
    """The file's content: the statistics, and the reports of whole shards, by file and tensor."""

    identity: dict[str, Any]
    statistics: Statistics
    shards: dict[str, dict[str, TensorReport]]


class MergeProgress:
    """The state of a merge in its unfinished folder: the statistics, once they are known, and the reports of the
    shards that are whole, by file and tensor.

    `identity` is everything that the bytes depend on. The folder of another merge is emptied, and so are shards that
    differ from their reports. `block_size` is the length of the stretches in the digests.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any], shards: Sequence[Shard], block_size: int):
        self._path = folder / PROGRESS_FILE
        self._identity = json.loads(json.dumps(identity))
        self.statistics: Statistics | None = None
        self.reports: dict[str, dict[str, TensorReport]] = {}
        self._resume(folder, shards, block_size)

    def keep_statistics(self, statistics: Statistics) -> None:
        self.statistics = statistics
        self._write()

    def keep_shard(self, shard: Shard, reports: Mapping[str, TensorReport]) -> None:
        self.reports[shard.file] = dict(reports)
        self._write()

    def remove(self) -> None:
        """Remove the state of a finished merge, which its record replaces."""
        self._path.unlink()

    def _resume(self, folder: Path, shards: Sequence[Shard], block_size: int) -> None:
        with suppress(OSError, ValueError):
            content = self._path.read_bytes()
            from pydantic import TypeAdapter  # slow to import, and needed only to resume

            left = TypeAdapter(_State).validate_json(content)
            if left.identity == self._identity:
                self.statistics = left.statistics
                self.reports = {
                    shard.file: left.shards[shard.file]
                    for shard in shards
                    if shard.file in left.shards and _is_whole(folder, shard, left.shards[shard.file], block_size)
                }
            elif left.shards:
                log.warning(
                    "warning: %s held an interrupted merge of other inputs or parameters; its %d whole weight files "
                    "are removed",
                    folder,
                    len(left.shards),
                )
        empty_folder(folder, keep={*self.reports, PROGRESS_FILE} if self.statistics else ())

    def _write(self) -> None:
        write_json(self._path, asdict(_State(self._identity, self.statistics, self.reports)))


def _is_whole(folder: Path, shard: Shard, reports: Mapping[str, TensorReport], block_size: int) -> bool:
    """Whether a shard's file holds the reported values."""
    try:
        tensors = read_header(folder / shard.file)
    except (UserError, OSError):
        return False
    if tuple(tensors) != shard.names or tensors.keys() != reports.keys():
        return False
    with open(folder / shard.file, "rb", buffering=0) as opened:
        for name, stored in tensors.items():

            def read(values, first, stored=stored) -> None:
                read_at(opened.fileno(), values, stored.offset + first)

            if read_tensor_digest(stored, read, block_size) != reports[name].output:
                return False
    return True
