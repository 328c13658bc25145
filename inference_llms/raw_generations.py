"""Every raw completion of a run, kept as soon as it exists, and the reading of such files for replay."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from inference_llms.data_sets import read_rows
from inference_llms.engines.engine import Sampling
from inference_llms.tasks.task import Example
from utils.errors import UserError
from utils.json_files import read_shaped_object
from utils.whole_files import errors_name, write_json


class Completion(NamedTuple):
    """What a model answered, when (seconds since 1970), and whether the limit of tokens cut it off; None: not known."""

    text: str
    time: float
    cut_off: bool | None = None


@dataclass(frozen=True)
class Completions:
    """Completions by id, the file where they are or will be kept, and the identity of the run they result from."""

    path: Path
    identity: dict[str, Any]
    by_id: dict[int | str, Completion]

    @property
    def weights(self) -> str | None:
        """The fingerprint of the weights that gave them; None for a replay that does not tell."""
        return self.identity.get("weights_fingerprint")


@dataclass(frozen=True)
class IdentityShape:
    """The fields of an identity that are read alone. What attacks keep has others beside them."""

    backend: str
    model_fingerprint: str | None = None
    weights_fingerprint: str | None = None


def identity_path(rows: Path) -> Path:
    """The file beside `<task>.jsonl` that says which run its rows belong to."""
    return rows.with_name(f"{rows.stem}.identity.json")


def run_identity(
    backend: str,
    model_fingerprint: str,
    weights_fingerprint: str,
    sampling: Sampling,
    unusual_dtype: str | None = None,
) -> dict[str, Any]:
    """What must agree for two runs' completions to be in one file."""
    settings = {**asdict(sampling), "stop": list(sampling.stop)}
    return {
        "backend": backend,
        "model_fingerprint": model_fingerprint,
        "weights_fingerprint": weights_fingerprint,
        "sampling": settings,
        **({} if unusual_dtype is None else {"engine_dtype": unusual_dtype}),
    }


def read_identity(rows: Path) -> dict[str, Any] | None:
    """The identity beside a file of completions; None where there is none."""
    path = identity_path(rows)
    if not path.is_file():
        return None
    remedy = f"remove it together with {rows.name}"
    return read_shaped_object(path, IdentityShape, remedy)


def check_same_run(path: Path, found: dict[str, Any] | None, identity: dict[str, Any]) -> None:
    """Raise `UserError` where what `path` holds belongs to another run than `identity`."""
    if found == identity:
        return
    if not isinstance(found, dict):
        difference = "nothing says which"
    else:
        keys = sorted(key for key in {*found, *identity} if found.get(key) != identity.get(key))
        difference = "another " + " and ".join(key.replace("_", " ") for key in keys)
        if len(str(found.get("model_fingerprint"))) == 64 != len(str(identity.get("model_fingerprint"))):
            difference = "of an earlier version, which did not hash the whole model"
    raise UserError(
        f"{path} holds the results of another run ({difference}); "
        "choose another --output_dir, or replace them with --overwrite"
    )


def stored_completions(
    path: Path, identity: dict[str, Any], whole_set: Sequence[Example]
) -> dict[int | str, Completion]:
    """The completions by id that an earlier call of the same run left in `path`.

    A half-written last line, left by a kill, is passed over. Raises `UserError` for a broken line, for rows
    of another run and for rows of another data set.
    """
    size = whole_lines(path)
    if size == 0:
        return {}
    check_same_run(path, read_identity(path), identity)
    prompts = {example.id: example.prompt for example in whole_set}
    completions: dict[int | str, Completion] = {}
    for number, line in enumerate(path.read_bytes()[:size].splitlines(), 1):
        row = read_stored_line(line, f"{path} line {number}")
        if prompts.get(row["id"]) != row["prompt"]:
            raise UserError(
                f"{path} line {number}: id {row['id']!r} was asked with another prompt, so from another data set; "
                "choose another --output_dir, or replace the rows with --overwrite"
            )
        completions[row["id"]] = Completion(row["completion"], _time_of(row, path), cut_off(row))
    return completions


def stored_row(example: Example, completion: Completion) -> dict[str, Any]:
    """The row of a file of completions."""
    asked = {"id": example.id, "prompt": example.prompt}
    return {**asked, "completion": completion.text, "time": completion.time, "cut_off": completion.cut_off}


def cut_off(row: Mapping[str, Any]) -> bool | None:
    """Whether a stored completion was cut off; None if the row does not say."""
    value = row.get("cut_off")
    return value if isinstance(value, bool) else None


def _time_of(row: dict[str, Any], path: Path) -> float:
    """When a stored completion was there: the file's time where the row does not tell."""
    time = row.get("time")
    return time if isinstance(time, int | float) else path.stat().st_mtime


def whole_lines(path: Path) -> int:
    """The size in bytes of the lines of `path` that are complete."""
    return path.read_bytes().rfind(b"\n") + 1 if path.is_file() else 0


def read_stored_line(line: bytes, place: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise UserError(f"{place} is broken; remove that line, and its example is asked again") from error
    if not isinstance(row, dict) or type(row.get("id")) not in (int, str):
        raise UserError(f"{place} lacks the id of an example; remove that line")
    if not isinstance(row.get("prompt"), str) or not isinstance(row.get("completion"), str):
        raise UserError(f"{place} lacks its prompt or completion; remove that line")
    return row


@contextmanager
def appended_rows(path: Path, identity: dict[str, Any], overwrite: bool) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Give a function that adds a row to `path`, where it is when the function returns.

    With the first row a half-written last line is cut off; with `overwrite` every row is. Until then nothing is
    changed, so that a run that fails at once leaves and loses nothing. The caller holds `locked(path)` since before it
    read the rows that are there.
    """
    with ExitStack() as opened:
        file: BinaryIO | None = None

        def write(row: dict[str, Any]) -> None:
            nonlocal file
            with errors_name(path):
                if file is None:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    file = opened.enter_context(open(path, "ab", buffering=0))
                    file.truncate(0 if overwrite else whole_lines(path))
                    write_json(identity_path(path), identity)
                line = f"{json.dumps(row)}\n".encode()
                while line:
                    line = line[file.write(line) :]

        yield write


def read_replay(path: Path, examples: Sequence[Example], whole_set: Sequence[Example]) -> Completions:
    """The completions of `examples` from a file of rows with `id` and `completion`.

    A folder of raw generations keeps its identity, and a half-written last line, left by a kill, is passed
    over there; any other file is known by its content, and a row without `time` has the file's. Raises
    `UserError`, naming the file and the id, for rows that are missing, doubled, of no example, or (where a
    row has a `prompt`) of another prompt.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist; --replay_from must name a folder that holds it")
    prompts = {example.id: example.prompt for example in whole_set}
    completions: dict[int | str, Completion] = {}
    identity = read_identity(path)
    for row in read_rows(path, {"completion": str}, may_end_torn=identity is not None):
        if "id" not in row.fields:
            raise UserError(f"{row.place} lacks the field 'id'; add it or remove the line")
        name = row.fields["id"]
        if type(name) not in (int, str) or name not in prompts:
            raise UserError(f"{row.place}: no example of the set has the id {name!r}; remove or mend the line")
        if name in completions:
            raise UserError(f"{row.place}: the id {name!r} stands there twice; remove one of the two lines")
        if row.fields.get("prompt", prompts[name]) != prompts[name]:
            raise UserError(
                f"{row.place}: the completion of id {name!r} was given to another prompt; "
                "replay it with the data set it was made from"
            )
        completions[name] = Completion(row.fields["completion"], _time_of(row.fields, path), cut_off(row.fields))
    missing = [example.id for example in examples if example.id not in completions]
    if missing:
        raise UserError(
            f"{path} has no completion of id {missing[0]!r} (and {len(missing) - 1} more); "
            "complete the file, or replay a part with --start_index and --end_index"
        )
    if identity is None:
        identity = {"backend": "replay", "completions_sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    return Completions(path, identity, completions)
