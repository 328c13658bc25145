"""Results of a search in a SQLite file. One process writes it; others may read it meanwhile.

Stored rows never change, so work that is repeated after a kill is stored once.
"""

import csv
import io
import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from inference_llms.answer_health import Health, health_of
from inference_llms.prompt_format import prompt_format_on_record
from model_merging_methods.merge_parameters import MergeParameters, parameters_from_fields
from scripts.mixup_search.search_space import EARLIER_SOBOL_GENERATOR, EQUAL_RATIOS, Candidate, space_from_fields
from utils.errors import UserError
from utils.intervals import wilson_interval
from utils.json_files import check_shape, short_json
from utils.whole_files import write_whole

VALIDATION, TEST = "validation", "test"
Part = Literal["validation", "test"]

_FORMAT = 1
_APPLICATION_ID = 0x4D335352  # marks the SQLite file as a search's
_BUSY_TIMEOUT = 30  # seconds that a write waits for readers

_LATER = ("cut_off", "readable", "tokens")  # columns of answers that files of earlier versions lack
_ANSWER = ("example", "completion", "right", "time", *_LATER)

_TABLES = """
CREATE TABLE search (identity TEXT NOT NULL);
CREATE TABLE candidates (
    number INTEGER PRIMARY KEY, candidate TEXT NOT NULL UNIQUE, kind TEXT NOT NULL, parameters TEXT NOT NULL, {columns}
);
CREATE TABLE answers (
    candidate TEXT NOT NULL, task TEXT NOT NULL, part TEXT NOT NULL, example NOT NULL,
    completion TEXT NOT NULL, "right" INTEGER NOT NULL, time REAL NOT NULL,
    cut_off INTEGER, readable INTEGER, tokens INTEGER,
    PRIMARY KEY (candidate, task, part, example)
);
CREATE TABLE scores (
    candidate TEXT NOT NULL, task TEXT NOT NULL, part TEXT NOT NULL, examples INTEGER NOT NULL,
    "right" INTEGER NOT NULL, interval_low REAL NOT NULL, interval_high REAL NOT NULL,
    seconds REAL NOT NULL, time REAL NOT NULL,
    PRIMARY KEY (candidate, task, part, examples)
);
CREATE VIEW results AS
SELECT candidate, kind, {columns}, task, part, examples, "right", 1.0 * "right" / examples AS score,
    interval_low, interval_high, seconds, strftime('%Y-%m-%dT%H:%M:%SZ', time, 'unixepoch') AS time
FROM scores JOIN candidates USING (candidate)
ORDER BY number, task, part DESC, examples;
INSERT INTO search VALUES (?);
PRAGMA application_id = {application};
PRAGMA user_version = {format}"""


@dataclass(frozen=True)
class Answer:
    """A completion of one example of a task, by its id, and whether it is right. `time` in seconds since 1970.

    cut_off: whether the limit of tokens ended it. readable: whether it has the form of answer that the task needs.
    tokens: its number of tokens. None: not known, or the task takes any text.
    """

    example: int | str
    completion: str
    right: bool
    time: float
    cut_off: bool | None = None
    readable: bool | None = None
    tokens: int | None = None


def health_of_answers(answers: Sequence[Answer]) -> Health:
    """The health of a candidate's answers to one task."""
    readable = [answer.readable for answer in answers]
    cut_off = [answer.cut_off for answer in answers]
    return health_of([answer.completion for answer in answers], cut_off, None if None in readable else readable)


@dataclass(frozen=True)
class Result:
    """How many examples of a part of a task a candidate answered right. `seconds`: time spent on the answers; `time` in
    seconds since 1970."""

    candidate: str
    task: str
    part: Part
    examples: int
    right: int
    seconds: float
    time: float

    @property
    def score(self) -> float:
        return self.right / self.examples

    @property
    def interval(self) -> tuple[float, float]:
        """The 95% interval of the score (Wilson)."""
        return wilson_interval(self.right, self.examples)


@dataclass(frozen=True)
class StoredMixup:
    """The ratios of a candidate's parameters."""

    weights: list[float]
    alpha: float | None


@dataclass(frozen=True)
class SearchIdentity:
    """The fields of a search's identity that are read back."""

    roles: list[str]
    tasks: list[str]
    role_of_task: dict[str, str]
    draw_by: str
    num_draws: int
    seed: int
    rungs: list[int]
    validation: dict[str, int]
    test: dict[str, int]
    models: dict[str, str | None]
    split: str
    backend: str
    space: dict[str, Any] | None = None
    models_dir: str | None = None
    allow_unrelated: bool = False
    baseline: str = EQUAL_RATIOS


@dataclass(frozen=True)
class StoredParameters:
    """The fields of a candidate's parameters. Those before `method` had `options` had two of them as fields."""

    method: str
    mask: dict[str, Any] | None
    mixup: StoredMixup | None
    seed: int
    dtype: str | None
    exclude_param_names_regex: list[str]
    options: dict[str, Any] | None = None
    scaling_coefficient: float | None = None
    param_value_mask_rate: float | None = None


class SearchStore(AbstractContextManager):
    """An open results file of the search that `identity`, a JSON object, describes; its `roles` name the models.

    A missing file is created. Without an identity the file is only read, and may hold any search. Raises UserError for
    a file that is not a search's, holds another search, or cannot be written; and later if a write fails.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any] | None = None):
        if identity is None and not path.exists():
            raise UserError(f"{path}: no such file; give the results file of a search")
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        # Reading needs permission to write too, to roll back the journal of a killed process.
        place = f"{path.resolve().as_uri()}?mode={'rw' if identity is None else 'rwc'}"
        with self._errors_in_one_line():
            self._connection = sqlite3.connect(place, uri=True, timeout=_BUSY_TIMEOUT, isolation_level=None)
        self._connection.row_factory = sqlite3.Row
        try:
            if identity is None:
                self._execute("PRAGMA query_only = ON")
            else:
                self._make_tables(json.dumps(identity), _column_names(identity))
            self.identity = self._read_identity()
            if identity is not None:
                self._check_same_search(json.loads(json.dumps(identity)))
        except UserError:
            self.close()
            raise

    def _make_tables(self, identity: str, columns: Sequence[str]) -> None:
        """Create the tables in a new file, or the missing columns in a file of an earlier version."""
        with self._writing():
            if not self._execute("SELECT 1 FROM sqlite_master"):
                quoted = ", ".join(f'"{name}"' for name in columns)
                text = _TABLES.format(columns=quoted, application=_APPLICATION_ID, format=_FORMAT)
                for statement in text.split(";\n"):
                    self._execute(statement, (identity,) if "?" in statement else ())
            present = self._columns("answers")
            for column in _LATER:
                if present and column not in present:
                    self._execute(f"ALTER TABLE answers ADD COLUMN {column} INTEGER")

    def _columns(self, table: str) -> list[str]:
        return [name for _, name, *_ in self._execute(f"PRAGMA table_info({table})")]

    def _read_identity(self) -> dict[str, Any]:
        [[application]], [[version]] = (self._execute(f"PRAGMA {name}") for name in ("application_id", "user_version"))
        if application != _APPLICATION_ID:
            raise UserError(f"{self.path}: is not the results file of a search; name another file")
        if version != _FORMAT:
            raise UserError(f"{self.path}: has format {version}, this program writes {_FORMAT}; name another file")
        return self._stored_json(self._execute("SELECT identity FROM search")[0][0], SearchIdentity)

    def _stored_json(self, text: str, shape: type) -> dict[str, Any]:
        try:
            value = json.loads(text)
        except (ValueError, TypeError, RecursionError) as error:
            raise UserError(f"{self.path}: holds text that is not JSON ({error}); name another file") from None
        check_shape(str(self.path), value, shape, "name another file")
        return value

    def _check_same_search(self, here: Mapping[str, Any]) -> None:
        stored = self.identity
        if "engine_dtype" in here and "engine_dtype" not in stored:
            raise UserError(
                f"{self.path}: holds a search of an earlier version, which did not hash whole models; name another file"
            )
        if "sobol_generator" in here and stored["draw_by"] == "sobol":
            stored = {"sobol_generator": EARLIER_SOBOL_GENERATOR, **stored}
        if stored.get("space") is not None:
            stored, here = ({**one, "space": self._present_space(one["space"])} for one in (stored, here))
        differing = []
        for name in dict.fromkeys((*stored, *here)):
            old, new = stored.get(name), here.get(name)
            if isinstance(old, dict) and isinstance(new, dict):
                old, new = ({key: a[key] for key in a if a[key] != b.get(key)} for a, b in ((old, new), (new, old)))
            if old != new and name != "split":  # a sentence for people
                differing.append(f"{name} ({short_json(old)} there, {short_json(new)} here)")
        if differing:
            raise UserError(
                f"{self.path}: holds another search: {', '.join(differing)}; name another file, or give that search's "
                "options and data"
            )

    def _present_space(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """A stored search space in the form of this version."""
        try:
            return json.loads(json.dumps(space_from_fields(fields).to_fields()))
        except (UserError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{self.path}: holds a search that this version does not know ({error})") from None

    def close(self, *_: object) -> None:
        self._connection.close()

    __exit__ = close

    def add_candidate(self, candidate: Candidate) -> None:
        """Store a candidate unless its name is stored already."""
        values = {
            "candidate": candidate.name,
            "kind": candidate.kind,
            "parameters": json.dumps(candidate.parameters.to_fields()),
            **_column_values(candidate, self.identity["roles"]),
        }
        columns = [name for name in self._columns("candidates") if name != "number"]
        self._insert("candidates", columns, [[values.get(name) for name in columns]])

    def candidates(self) -> list[Candidate]:
        """All candidates in the order in which they were added."""
        rows = self._execute("SELECT candidate, kind, parameters, alpha FROM candidates ORDER BY number")
        return [Candidate(name, kind, self._parameters(text), alpha) for name, kind, text, alpha in rows]

    def _parameters(self, text: str) -> MergeParameters:
        fields = self._stored_json(text, StoredParameters)
        try:
            return parameters_from_fields(fields)
        except (UserError, KeyError, TypeError, ValueError, AttributeError) as error:  # fields of another version
            raise UserError(f"{self.path}: holds a merge that this version does not know ({error})") from None

    def add_answers(self, candidate: str, task: str, part: Part, answers: Sequence[Answer]) -> None:
        """Store a candidate's answers to examples of a part of a task; stored answers stay."""
        rows = [(candidate, task, part, *(getattr(answer, name) for name in _ANSWER)) for answer in answers]
        self._insert("answers", ("candidate", "task", "part", *_ANSWER), rows)

    def answers(self, candidate: str, task: str, part: Part) -> dict[int | str, Answer]:
        """A candidate's answers by example, in the order in which they were stored."""
        rows = self._execute(
            "SELECT * FROM answers WHERE candidate = ? AND task = ? AND part = ? ORDER BY rowid",
            (candidate, task, part),
        )
        return {row["example"]: _answer(dict(row)) for row in rows}

    def answer_seconds(self) -> dict[tuple[str, Part], tuple[int, float]]:
        """The number of stored answers and the seconds spent on them, by task and part. The time of answers that have
        no score yet is estimated from the others."""
        rows = self._execute("SELECT task, part, count(*) FROM answers GROUP BY task, part")
        counts = {(task, part): number for task, part, number in rows}
        # Each score counts the answers since the smaller one before it.
        scored: dict[tuple[str, str, str], tuple[int, float]] = {}
        for task, part, candidate, examples, seconds in self._execute(
            "SELECT task, part, candidate, examples, seconds FROM scores ORDER BY examples"
        ):
            _, before = scored.get((task, part, candidate), (0, 0.0))
            scored[task, part, candidate] = (examples, before + seconds)
        found = {}
        for key, number in counts.items():
            known = [value for (task, part, _), value in scored.items() if (task, part) == key]
            examples, seconds = sum(one for one, _ in known), sum(one for _, one in known)
            found[key] = (number, seconds * number / examples if examples else 0.0)
        return found

    def add_start(self, seconds: float) -> None:
        """Store the time of a start of an engine, in a table that files of earlier versions lack."""
        self._execute("CREATE TABLE IF NOT EXISTS starts (seconds REAL NOT NULL)")
        self._insert("starts", ("seconds",), [[seconds]])

    def start_seconds(self) -> list[float]:
        """The time of each start of an engine."""
        has_starts = bool(self._columns("starts"))
        return [seconds for (seconds,) in self._execute("SELECT seconds FROM starts")] if has_starts else []

    def add_result(self, result: Result) -> None:
        """Store a result, unless there is one for this candidate, task, part and number of examples."""
        values = asdict(result) | dict(zip(("interval_low", "interval_high"), result.interval, strict=True))
        self._insert("scores", tuple(values), [tuple(values.values())])

    def results(self) -> list[Result]:
        """All results, by candidate in order of addition, task, part and number of examples."""
        rows = self._execute(
            'SELECT candidate, task, part, examples, "right", seconds, scores.time '
            "FROM scores JOIN candidates USING (candidate) ORDER BY number, task, part DESC, examples"
        )
        return [Result(*row) for row in rows]

    def export_csv(self, path: Path) -> None:
        """Write a row for each candidate, task and part, at the largest number of examples, with every parameter, and
        with the format of the prompts if it is not the paper's.

        Replaces an earlier export. Raises UserError if `path` is anything else.
        """
        header = self._columns("results")
        rows = self._execute(
            "SELECT * FROM results AS result WHERE examples = (SELECT MAX(examples) FROM scores "
            "WHERE candidate = result.candidate AND task = result.task AND part = result.part)"
        )
        prompts = prompt_format_on_record(self.identity)
        if not prompts.is_paper:
            header, rows = [*header, "prompts"], [[*row, prompts] for row in rows]
        if path.exists() and not (path.is_file() and path.read_bytes().startswith(",".join(header[:2]).encode())):
            raise UserError(f"{path}: is not an earlier export of a search; name another file")
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([header, *rows])
        write_whole(path, text.getvalue())

    def _execute(self, statement: str, values: Sequence[Any] = ()) -> list[sqlite3.Row]:
        with self._errors_in_one_line():
            return self._connection.execute(statement, values).fetchall()

    def _insert(self, table: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        names, places = ", ".join(f'"{name}"' for name in columns), ", ".join("?" * len(columns))
        with self._writing():
            statement = f"INSERT INTO {table} ({names}) VALUES ({places}) ON CONFLICT DO NOTHING"
            self._connection.executemany(statement, rows)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Run the block as one transaction."""
        with self._errors_in_one_line(), self._connection:
            self._connection.execute("BEGIN IMMEDIATE")
            yield

    @contextmanager
    def _errors_in_one_line(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:  # a full disk, a missing permission, a reader that does not end
            raise UserError(f"{self.path}: {error}; fix this and rerun") from None
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.ProgrammingError | sqlite3.IntegrityError):
                raise
            raise UserError(f"{self.path}: is damaged or not a SQLite file ({error}); name another file") from None


def _answer(row: Mapping[str, Any]) -> Answer:
    # A file of an earlier version that is only read lacks the columns of health.
    health = (None if row.get(name) is None else bool(row[name]) for name in ("cut_off", "readable"))
    return Answer(row["example"], row["completion"], bool(row["right"]), row["time"], *health, row.get("tokens"))


def _column_names(identity: Mapping[str, Any]) -> list[str]:
    """The columns that describe a candidate's merge to people who read the file with other tools. Files of earlier
    versions have the same ones for every method."""
    base = parameters_from_fields(identity["space"]["base"])
    names = dict.fromkeys(("alpha", *(f"ratio_{role}" for role in identity["roles"]), *_parameter_columns(base)))
    return list(names)


def _column_values(candidate: Candidate, roles: Sequence[str]) -> dict[str, Any]:
    is_by_layer = candidate.ratios and candidate.parameters.mixup.by_layer
    ratios = [None] * len(roles) if is_by_layer or not candidate.ratios else candidate.ratios
    values = zip((f"ratio_{role}" for role in roles), ratios, strict=True)
    return {"alpha": candidate.alpha, **dict(values), **_parameter_columns(candidate.parameters)}


def _parameter_columns(parameters: MergeParameters) -> dict[str, Any]:
    """Column names and values: the method with its options, then the mask with its own. An option that both have is
    the mask's."""
    mask, patterns = parameters.mask, parameters.exclude_param_names_regex
    in_mask = mask.to_fields() if mask is not None else {}
    own = {name: _cell(value) for name, value in parameters.values.items() if name not in in_mask}
    return {
        "method": parameters.method,
        **own,
        "seed": parameters.seed,
        "dtype": parameters.dtype,
        **{name: _cell(value) for name, value in in_mask.items()},
        "exclude_param_names_regex": json.dumps(patterns) if patterns else None,
    }


def _cell(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, tuple) else value
