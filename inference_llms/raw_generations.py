"""Store each raw completion of a run immediately, and read the stored ones to resume or replay the run."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from inference_llms.data_sets import read_rows
from inference_llms.prompt_format import PromptFormat
from inference_llms.task import Example
from utils.errors import UserError
from utils.json_files import parse_json_lines, read_shaped_object, short_json
from utils.whole_files import errors_name, write_json


class StoredCompletion(NamedTuple):
    """A model's completion, the time it finished (seconds since 1970), whether the token limit cut it off, and its
    number of tokens (None: unknown)."""

    text: str
    time: float
    cut_off: bool | None = None
    tokens: int | None = None


@dataclass(frozen=True)
class Completions:
    """Completions by id, the file that stores them, and the identity of their run."""

    path: Path
    identity: dict[str, Any]
    by_id: dict[int | str, StoredCompletion]

    @property
    def weights(self) -> str | None:
        """The fingerprint of the weights that generated them; None for a replay without one."""
        return self.identity.get("weights_fingerprint")


@dataclass(frozen=True)
class IdentityShape:
    """The fields of an identity that are read. Identities of attacks have more."""

    backend: str
    model_fingerprint: str | None = None
    weights_fingerprint: str | None = None


def identity_path(rows: Path) -> Path:
    """The file beside `<task>.jsonl` that says which run its rows belong to."""
    return rows.with_name(f"{rows.stem}.identity.json")


def read_identity(rows: Path) -> dict[str, Any] | None:
    """The identity beside a file of completions, if there is one."""
    path = identity_path(rows)
    return read_shaped_object(path, IdentityShape, f"remove it together with {rows.name}") if path.is_file() else None


def check_same_run(path: Path, stored: dict[str, Any] | None, identity: dict[str, Any]) -> None:
    """Raise `UserError` if the content of `path` does not belong to the run with this identity."""
    if stored == identity:
        return
    if not isinstance(stored, dict):
        difference = "it does not say which"
    else:
        keys = sorted(key for key in {*stored, *identity} if stored.get(key) != identity.get(key))
        difference = "another " + " and ".join(_difference(key, stored.get(key), identity.get(key)) for key in keys)
        if len(str(stored.get("model_fingerprint"))) == 64 != len(str(identity.get("model_fingerprint"))):
            difference = "of an earlier version, which did not hash the whole model"
    raise UserError(
        f"{path} holds the results of another run ({difference}); "
        "choose another --output_dir, or replace them with --overwrite"
    )


def _difference(name: str, stored: Any, found: Any) -> str:
    """The name of a field of an identity and, if it has several values, those that differ."""
    words = name.replace("_", " ")
    if not isinstance(stored, dict) or not isinstance(found, dict):
        return words
    pairs = {part: (stored.get(part), found.get(part)) for part in {**stored, **found}}
    parts = [f"{part} {short_json(a)} there, {short_json(b)} here" for part, (a, b) in pairs.items() if a != b]
    return f"{words}: {', '.join(parts)}"


def stored_completions(
    path: Path, identity: dict[str, Any], whole_set: Sequence[Example]
) -> dict[int | str, StoredCompletion]:
    """The completions by id that an earlier call of the same run left in `path`.

    Raises `UserError` for a broken line, for rows of another run and for rows of another data set.
    """
    if whole_lines(path) == 0:
        return {}
    check_same_run(path, read_identity(path), identity)
    prompts = {example.id: example.prompt for example in whole_set}
    completions: dict[int | str, StoredCompletion] = {}
    for place, row in stored_rows(path):
        if prompts.get(row["id"]) != row["prompt"]:
            raise UserError(
                f"{place}: id {row['id']!r} has another prompt here, so it is from another data set; "
                "choose another --output_dir, or replace the rows with --overwrite"
            )
        completions[row["id"]] = _completion(row, path)
    return completions


def stored_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The place and content of each stored row, except an incomplete last line of a killed run.

    Raises `UserError` for a broken row."""
    lines = path.read_bytes()[: whole_lines(path)].splitlines()
    for place, row in parse_json_lines(lines, path, "remove that line, and its example is completed again"):
        if not isinstance(row, dict) or type(row.get("id")) not in (int, str):
            raise UserError(f"{place} lacks the id of an example; remove that line")
        if not isinstance(row.get("prompt"), str) or not isinstance(row.get("completion"), str):
            raise UserError(f"{place} lacks its prompt or completion; remove that line")
        yield place, row


def cut_off(row: Mapping[str, Any]) -> bool | None:
    """Whether a stored completion was cut off; None if the row does not say."""
    value = row.get("cut_off")
    return value if isinstance(value, bool) else None


def _completion(row: Mapping[str, Any], path: Path) -> StoredCompletion:
    """The completion of a row of `path`. A row without a time gets the file's."""
    time, tokens = row.get("time"), row.get("tokens")
    return StoredCompletion(
        text=row["completion"],
        time=time if isinstance(time, int | float) else path.stat().st_mtime,
        cut_off=cut_off(row),
        tokens=tokens if type(tokens) is int else None,
    )


def whole_lines(path: Path) -> int:
    """The size in bytes of the complete lines of `path`."""
    return path.read_bytes().rfind(b"\n") + 1 if path.is_file() else 0


@contextmanager
def appended_rows(path: Path, identity: dict[str, Any], overwrite: bool) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Yield a function that adds a row to `path`; the row is in the file when the function returns.

    The first row replaces an incomplete last line; with `overwrite`, all rows. Nothing changes before the first row, so
    a run that fails immediately loses nothing. The caller must hold `locked(path)` from before it reads the rows.
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


def read_replay(
    path: Path, examples: Sequence[Example], whole_set: Sequence[Example], prompt_format: PromptFormat
) -> Completions:
    """The completions of `examples` from a file of rows with `id` and `completion`.

    In a folder of raw generations, the file keeps its identity, and an incomplete last line of a killed run is skipped;
    any other file is identified by its content. Raises `UserError`, naming the file and the id, for rows that are
    missing, repeated, of no example, or (if a row has a `prompt`) of another prompt.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist; --replay_from must name a folder that holds it")
    prompts = {example.id: example.prompt for example in whole_set}
    completions: dict[int | str, StoredCompletion] = {}
    identity = read_identity(path)
    wanted = prompt_format.on_record()
    if identity is not None and identity.get("prompt_format") != wanted.get("prompt_format"):
        raise UserError(f"{path} holds answers to prompts of another format; replay it with the same --prompt_format")
    for row in read_rows(path, {"completion": str}, may_end_torn=identity is not None):
        if "id" not in row.fields:
            raise UserError(f"{row.place} lacks the field 'id'; add it or remove the line")
        name = row.fields["id"]
        if type(name) not in (int, str) or name not in prompts:
            raise UserError(f"{row.place}: no example of the set has the id {name!r}; remove or fix the line")
        if name in completions:
            raise UserError(f"{row.place} repeats the id {name!r}; remove one of the two lines")
        if row.fields.get("prompt", prompts[name]) != prompts[name]:
            raise UserError(
                f"{row.place}: the completion of id {name!r} is of another prompt; replay it with its own data set"
            )
        completions[name] = _completion(row.fields, path)
    missing = [example.id for example in examples if example.id not in completions]
    if missing:
        raise UserError(
            f"{path} has no completion of id {missing[0]!r} (and {len(missing) - 1} more); "
            "complete the file, or replay a part with --start_index and --end_index"
        )
    if identity is None:
        identity = {"backend": "replay", "completions_sha256": hashlib.sha256(path.read_bytes()).hexdigest(), **wanted}
    return Completions(path, identity, completions)
