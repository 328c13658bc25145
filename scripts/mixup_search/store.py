"""The results of a search in a SQLite file, which several processes may read and write at the same time.

What is stored is never changed, so that work done twice, after a kill or by two processes, is stored once.

The file has a rollback journal, not a write-ahead log: the latter cannot be shared by several machines.
"""

import csv
import io
import json
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from model_merging_methods.merge_parameters import Mask, MergeParameters, parameters_from_fields
from scripts.mixup_search.candidate import Answer, Candidate, Part, Result
from scripts.mixup_search.claims import is_void, this_process
from utils.errors import UserError
from utils.json_files import check_shape
from utils.whole_files import write_whole

FORMAT = 1
_APPLICATION_ID = 0x4D335352  # tells this kind of SQLite file from others
_BUSY_TIMEOUT = 120  # seconds that a write waits for those of other processes
_RENEWED_EVERY = 60  # seconds

_PARAMETERS = ("method", "scaling_coefficient", "param_value_mask_rate", "seed", "dtype")
_MASK_PARAMETERS = tuple(field.name for field in fields(Mask))

# Columns of answers that files from earlier versions lack.
_HEALTH = ("cut_off", "readable")

_TABLES = """
CREATE TABLE search (identity TEXT NOT NULL);
CREATE TABLE candidates (
    number INTEGER PRIMARY KEY, candidate TEXT NOT NULL UNIQUE, kind TEXT NOT NULL, parameters TEXT NOT NULL, {columns}
);
CREATE TABLE answers (
    candidate TEXT NOT NULL, task TEXT NOT NULL, part TEXT NOT NULL, example NOT NULL,
    completion TEXT NOT NULL, "right" INTEGER NOT NULL, time REAL NOT NULL, {health},
    PRIMARY KEY (candidate, task, part, example)
);
CREATE TABLE scores (
    candidate TEXT NOT NULL, task TEXT NOT NULL, part TEXT NOT NULL, examples INTEGER NOT NULL,
    "right" INTEGER NOT NULL, interval_low REAL NOT NULL, interval_high REAL NOT NULL,
    seconds REAL NOT NULL, time REAL NOT NULL,
    PRIMARY KEY (candidate, task, part, examples)
);
CREATE TABLE claims (
    candidate TEXT NOT NULL, part TEXT NOT NULL, holder TEXT NOT NULL, renewed REAL NOT NULL,
    PRIMARY KEY (candidate, part)
);
CREATE VIEW results AS
SELECT candidate, kind, {columns}, task, part, examples, "right", 1.0 * "right" / examples AS score,
    interval_low, interval_high, seconds, strftime('%Y-%m-%dT%H:%M:%SZ', time, 'unixepoch') AS time
FROM scores JOIN candidates USING (candidate)
ORDER BY number, task, part DESC, examples;
"""


@dataclass(frozen=True)
class IdentityShape:
    """The fields of a search's identity that are read again."""

    roles: list[str]
    tasks: list[str]
    role_of_task: dict[str, str]
    draw_by: str
    num_draws: int
    seed: int
    space: dict[str, Any]
    validation: dict[str, int]
    test: dict[str, int]
    models: dict[str, str | None]
    split: str
    backend: str
    models_dir: str | None = None
    allow_unrelated: bool = False


class SearchStore:
    """An open results file of the search that `identity`, a JSON object, describes; its `roles` name the models.

    The file is made where there is none. Raises UserError for a file that is no such file, holds another search, or
    cannot be written; and later where a write fails, or waits for other processes for minutes.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any]):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.identity: dict[str, Any] = json.loads(json.dumps(identity))
        self._open(path, "rwc")
        try:
            with self._writing() as connection:
                if not connection.execute("SELECT 1 FROM sqlite_master").fetchone():
                    self._make_tables(connection)
                self._add_health(connection)
            self._check_same_search(self._read_identity())
        except UserError:
            self.close()
            raise

    @classmethod
    def open_existing(cls, path: Path) -> "SearchStore":
        """Open a results file to read it, whatever search it holds."""
        if not path.exists():
            raise UserError(f"{path}: no such file; give the results file of a search")
        store = cls.__new__(cls)
        store._open(path, "rw")  # a journal that a killed process left is rolled back, which takes writing
        store._connection.execute("PRAGMA query_only = ON")
        store.identity = store._read_identity()
        return store

    def _open(self, path: Path, mode: str) -> None:
        self.path = path
        self._lock = threading.Lock()
        with self._errors_in_one_line():
            self._connection = sqlite3.connect(
                f"{path.resolve().as_uri()}?mode={mode}",
                uri=True,
                timeout=_BUSY_TIMEOUT,
                isolation_level=None,
                check_same_thread=False,
            )

    def _make_tables(self, connection: sqlite3.Connection) -> None:
        columns = ", ".join(_column_names(self.identity["roles"]))
        health = ", ".join(f"{column} INTEGER" for column in _HEALTH)
        for statement in _TABLES.format(columns=columns, health=health).split(";\n"):
            connection.execute(statement)
        connection.execute("INSERT INTO search VALUES (?)", (json.dumps(self.identity),))
        connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {FORMAT}")

    def _add_health(self, connection: sqlite3.Connection) -> None:
        columns = {name for _, name, *_ in connection.execute("PRAGMA table_info(answers)")}
        for column in _HEALTH:
            if columns and column not in columns:
                connection.execute(f"ALTER TABLE answers ADD COLUMN {column} INTEGER")

    def _read_identity(self) -> dict[str, Any]:
        [application], [version] = self._read("PRAGMA application_id")[0], self._read("PRAGMA user_version")[0]
        if application != _APPLICATION_ID:
            raise UserError(f"{self.path}: is not the results file of a search; name another file")
        if version != FORMAT:
            raise UserError(f"{self.path}: has format {version}, this program writes {FORMAT}; name another file")
        return self._stored_json(self._read("SELECT identity FROM search")[0][0], IdentityShape)

    def _stored_json(self, text: str, shape: type) -> dict[str, Any]:
        remedy = "name another file"
        try:
            value = json.loads(text)
        except (ValueError, TypeError, RecursionError) as error:
            raise UserError(f"{self.path}: holds a text that is not JSON ({error}); {remedy}") from None
        check_shape(str(self.path), value, shape, remedy)
        return value

    def _check_same_search(self, stored: Mapping[str, Any]) -> None:
        keys = [
            key
            for key in dict.fromkeys((*stored, *self.identity))
            if key not in stored or key not in self.identity or stored[key] != self.identity[key]
        ]
        if "engine_dtype" in self.identity and "engine_dtype" not in stored:
            raise UserError(
                f"{self.path}: holds a search of an earlier version, which did not hash whole models; name another file"
            )
        if keys:
            here = ", ".join(
                f"{key} ({_short(stored.get(key))} there, {_short(self.identity.get(key))} here)" for key in keys
            )
            raise UserError(
                f"{self.path}: holds another search: {here}; name another file, or type that search's options"
            )

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> "SearchStore":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add_candidate(self, candidate: Candidate) -> Candidate:
        """Store a candidate, unless one of its name is stored already; gives the stored one."""
        roles = self.identity["roles"]
        parameters = json.dumps(asdict(candidate.parameters))
        values = (candidate.name, candidate.kind, parameters, *_column_values(candidate, len(roles)))
        with self._writing() as connection:
            connection.execute(
                f"INSERT INTO candidates (candidate, kind, parameters, {', '.join(_column_names(roles))}) "
                f"VALUES ({', '.join('?' * len(values))}) ON CONFLICT DO NOTHING",
                values,
            )
        return next(stored for stored in self.candidates() if stored.name == candidate.name)

    def candidates(self) -> list[Candidate]:
        """All candidates in the order in which they were added."""
        rows = self._read("SELECT candidate, kind, parameters, alpha FROM candidates ORDER BY number")
        try:
            return [
                Candidate(name, kind, parameters_from_fields(self._stored_json(parameters, MergeParameters)), alpha)
                for name, kind, parameters, alpha in rows
            ]
        except (KeyError, TypeError, AttributeError) as error:  # fields of another version
            raise UserError(f"{self.path}: holds a merge that this version does not know ({error})") from None

    def add_answers(self, candidate: str, task: str, part: Part, answers: Sequence[Answer]) -> None:
        """Store a candidate's answers to examples of a part of a task; those that are stored already stay."""
        names = ("example", "completion", "right", "time", *_HEALTH)
        rows = [(candidate, task, part, *(getattr(answer, name) for name in names)) for answer in answers]
        columns = ", ".join(f'"{name}"' for name in ("candidate", "task", "part", *names))
        with self._writing() as connection:
            connection.executemany(
                f"INSERT INTO answers ({columns}) VALUES ({', '.join('?' * (3 + len(names)))}) ON CONFLICT DO NOTHING",
                rows,
            )

    def answers(self, candidate: str, task: str, part: Part) -> dict[int | str, Answer]:
        """A candidate's answers by example, in the order in which they were stored."""
        with self._lock, self._errors_in_one_line():
            cursor = self._connection.execute(
                "SELECT * FROM answers WHERE candidate = ? AND task = ? AND part = ? ORDER BY rowid",
                (candidate, task, part),
            )
            names, rows = [name for name, *_ in cursor.description], cursor.fetchall()
        return {row["example"]: _answer(row) for row in (dict(zip(names, values, strict=True)) for values in rows)}

    def add_result(self, result: Result) -> None:
        """Store a result, unless there is one of this candidate, task, part and number of examples."""
        values = (
            *(result.candidate, result.task, result.part, result.examples, result.right),
            *result.interval,
            *(result.seconds, result.time),
        )
        with self._writing() as connection:
            connection.execute("INSERT INTO scores VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING", values)

    def results(self) -> list[Result]:
        """All results, by candidate in order of addition, task, part and number of examples."""
        rows = self._read(
            'SELECT candidate, task, part, examples, "right", seconds, scores.time '
            "FROM scores JOIN candidates USING (candidate) ORDER BY number, task, part DESC, examples"
        )
        return [Result(*row) for row in rows]

    def claim(self, candidate: str, part: Part) -> bool:
        """Take the work on a part for this process; False where a living process has it."""
        with self._writing() as connection:
            held = connection.execute(
                "SELECT holder, renewed FROM claims WHERE candidate = ? AND part = ?", (candidate, part)
            ).fetchone()
            if held is not None and held[0] != this_process() and not is_void(*held):
                return False
            connection.execute(
                "INSERT OR REPLACE INTO claims VALUES (?, ?, ?, ?)", (candidate, part, this_process(), time.time())
            )
            return True

    def renew(self) -> None:
        """Renew all claims of this process: to be called every minute or so, from any thread."""
        with self._writing() as connection:
            connection.execute("UPDATE claims SET renewed = ? WHERE holder = ?", (time.time(), this_process()))

    @contextmanager
    def renewing(self) -> Iterator[None]:
        """Renew this process's claims while the block lasts, however long an engine is silent; then give back all."""
        ended = threading.Event()

        def renew() -> None:
            while not ended.wait(_RENEWED_EVERY):
                self.renew()

        thread = threading.Thread(target=renew, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            with self._writing() as connection:
                connection.execute("DELETE FROM claims WHERE holder = ?", (this_process(),))

    def release(self, candidate: str, part: Part) -> None:
        """Give back a claim, if this process has it."""
        with self._writing() as connection:
            connection.execute(
                "DELETE FROM claims WHERE candidate = ? AND part = ? AND holder = ?", (candidate, part, this_process())
            )

    def export_csv(self, path: Path) -> None:
        """Write a row for each candidate, task and part, at the largest number of examples, with every parameter.

        Replaces an earlier export. Raises UserError where another kind of file is at `path`.
        """
        with self._lock, self._errors_in_one_line():
            cursor = self._connection.execute(
                "SELECT * FROM results AS result WHERE examples = (SELECT MAX(examples) FROM scores "
                "WHERE candidate = result.candidate AND task = result.task AND part = result.part)"
            )
            header, rows = [name for name, *_ in cursor.description], cursor.fetchall()
        if path.exists() and not (path.is_file() and path.read_bytes().startswith(",".join(header[:2]).encode())):
            raise UserError(f"{path}: is not an earlier export of a search; name another file")
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([header, *rows])
        write_whole(path, text.getvalue())

    def _read(self, query: str, values: Sequence[Any] = ()) -> list[tuple]:
        with self._lock, self._errors_in_one_line():
            return self._connection.execute(query, values).fetchall()

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """One step that is stored whole or not at all, and that no other writer comes between."""
        with self._lock, self._errors_in_one_line(), self._connection:
            self._connection.execute("BEGIN IMMEDIATE")
            yield self._connection

    @contextmanager
    def _errors_in_one_line(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:  # a full disk, no permission, a lock that is never given back
            raise UserError(f"{self.path}: {error}; fix this and rerun") from None
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.ProgrammingError | sqlite3.IntegrityError):
                raise
            raise UserError(f"{self.path}: is not a whole SQLite file ({error}); name another file") from None


def _answer(row: Mapping[str, Any]) -> Answer:
    # A file from an earlier version that is only read lacks the columns of health.
    health = [None if row.get(column) is None else bool(row[column]) for column in _HEALTH]
    return Answer(row["example"], row["completion"], bool(row["right"]), row["time"], *health)


def _column_names(roles: Sequence[str]) -> list[str]:
    """The columns that tell a candidate's merge to those who read the file with other tools."""
    return ["alpha", *(f"ratio_{role}" for role in roles), *_PARAMETERS, *_MASK_PARAMETERS, "exclude_param_names_regex"]


def _column_values(candidate: Candidate, number_of_roles: int) -> list[Any]:
    parameters, mask = candidate.parameters, candidate.parameters.mask
    patterns = parameters.exclude_param_names_regex
    return [
        candidate.alpha,
        *([None] * number_of_roles if parameters.mixup is None else parameters.mixup.weights),
        *(getattr(parameters, name) for name in _PARAMETERS),
        *(None if mask is None else getattr(mask, name) for name in _MASK_PARAMETERS),
        json.dumps(patterns) if patterns else None,
    ]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
