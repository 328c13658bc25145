"""The results file of a search: what it stores, files of earlier versions, damaged files, exports."""

import csv
import json
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

from model_merging_methods.merge_parameters import mask_of, parameters_of
from model_merging_methods.mixup import Mixup, two_model_ratios
from scripts.mixup_search import store as store_module
from scripts.mixup_search.search_space import Candidate, SearchSpace, Values
from scripts.mixup_search.store import TEST, VALIDATION, Answer, Result, SearchStore
from tests.scripts.mixup_search.small_search import IDENTITY
from utils.errors import UserError

ROOT = Path(__file__).resolve().parents[3]
TIES = Candidate(
    "draw 0",
    "draw",
    parameters_of(
        "ties_merging",
        scaling_coefficient=0.7,
        mask=mask_of(weight_mask_rate=0.3, use_weight_rescale=True),
        mixup=Mixup(two_model_ratios(0.1234567890123456)),
        seed=4,
        dtype="bfloat16",
        exclude_param_names_regex=("lm_head", "a,b"),
    ),
    alpha=0.5,
)
PLAIN = Candidate("without M3", "plain", parameters_of("task_arithmetic"))


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "results.sqlite"


def answer(example: int | str, right: bool = True, completion: str = "The answer is 4.\n") -> Answer:
    return Answer(example, completion, right, 1_700_000_000.5)


def result(candidate: str, examples: int, right: int, task: str = "gsm8k", part: str = VALIDATION) -> Result:
    return Result(candidate, task, part, examples, right, 2.5, 1_700_000_000.0)


def change(path: Path, *statements: str) -> None:
    """Change a file as another program or an earlier version would."""
    with sqlite3.connect(path) as connection:
        for statement in statements:
            connection.execute(statement)


def test_everything_stored_is_read_back(path):
    with SearchStore(path, IDENTITY) as store:
        store.add_candidate(TIES)
        store.add_candidate(PLAIN)
        store.add_answers("draw 0", "gsm8k", VALIDATION, [answer(1), answer("1", False, "ü\0é")])
        unread = replace(answer(1, False), cut_off=True, readable=False)
        store.add_answers("draw 0", "gsm8k", TEST, [unread])
        store.add_result(result("without M3", 8, 3))
        store.add_result(result("draw 0", 32, 20))
        store.add_result(result("draw 0", 8, 5))
        store.add_result(result("draw 0", 32, 9, part=TEST))
    for reopened in (SearchStore(path, IDENTITY), SearchStore(path)):
        with reopened as store:
            assert store.identity == json.loads(json.dumps(IDENTITY))
            assert store.candidates() == [TIES, PLAIN]
            assert store.answers("draw 0", "gsm8k", VALIDATION) == {1: answer(1), "1": answer("1", False, "ü\0é")}
            assert store.answers("draw 0", "gsm8k", TEST) == {1: unread}
            assert store.answers("draw 0", "MATH", TEST) == {}
            assert store.results() == [
                result("draw 0", 8, 5),
                result("draw 0", 32, 20),
                result("draw 0", 32, 9, part=TEST),
                result("without M3", 8, 3),
            ]


def test_rows_stored_first_stay(path):
    with SearchStore(path, IDENTITY) as store:
        store.add_candidate(TIES)
        store.add_candidate(replace(PLAIN, name=TIES.name))
        assert store.candidates() == [TIES]
        store.add_answers("draw 0", "gsm8k", VALIDATION, [answer(1), answer(2)])
        store.add_answers("draw 0", "gsm8k", VALIDATION, [answer(2, False, "other"), answer(3)])
        assert store.answers("draw 0", "gsm8k", VALIDATION) == {1: answer(1), 2: answer(2), 3: answer(3)}
        store.add_result(result("draw 0", 8, 5))
        store.add_result(result("draw 0", 8, 6))
        assert store.results() == [result("draw 0", 8, 5)]


def test_a_file_of_an_earlier_version_is_read_and_continued(path):
    """It has a table of claims, and no columns for the health of answers."""
    with SearchStore(path, IDENTITY) as store:
        store.add_answers("draw 0", "gsm8k", VALIDATION, [answer(1)])
    claims = "CREATE TABLE claims (candidate TEXT, part TEXT, holder TEXT, renewed REAL, PRIMARY KEY (candidate, part))"
    change(path, claims, *(f"ALTER TABLE answers DROP COLUMN {column}" for column in ("cut_off", "readable")))
    with SearchStore(path) as store:
        assert store.answers("draw 0", "gsm8k", VALIDATION) == {1: answer(1)}
    later = replace(answer(2), cut_off=True, readable=False)
    with SearchStore(path, {**IDENTITY, "split": "The same, in other words."}) as store:
        store.add_answers("draw 0", "gsm8k", VALIDATION, [later])
        assert store.answers("draw 0", "gsm8k", VALIDATION) == {1: answer(1), 2: later}


COLUMNS_OF_EVERY_METHOD = [
    *("alpha", "ratio_instruct", "ratio_math", "method", "scaling_coefficient", "param_value_mask_rate", "seed"),
    *("dtype", "weight_mask_rate", "use_weight_rescale", "mask_strategy", "weight_format", "exclude_param_names_regex"),
]
MASK_OF_BEFORE = {
    "weight_mask_rate": 0.2,
    "use_weight_rescale": False,
    "mask_strategy": "random",
    "weight_format": "delta_weight",
}
BEFORE = {
    "method": "ties_merging",
    "scaling_coefficient": 0.7,
    "param_value_mask_rate": 0.5,
    "mask": MASK_OF_BEFORE,
    "mixup": {"weights": [0.25, 0.75], "alpha": None},
    "seed": 0,
    "dtype": None,
    "exclude_param_names_regex": [],
}
SPACE_BEFORE = {
    "number_of_models": 2,
    "base": {**BEFORE, "mixup": None, "config_from": None},
    "alpha": {"numbers": [0.5], "is_range": False},
    "scaling_coefficient": {"numbers": [0.7, 1.0], "is_range": False},
    "weight_mask_rate": {"numbers": [0.2], "is_range": False},
    "param_value_mask_rate": {"numbers": [0.5], "is_range": False},
}


def test_a_file_from_before_methods_had_options_is_continued_and_exported(path, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(store_module, "_column_names", lambda identity: COLUMNS_OF_EVERY_METHOD)
        SearchStore(path, {**IDENTITY, "space": SPACE_BEFORE}).close()
    columns = ("candidate", "kind", "parameters", "alpha", "scaling_coefficient", "weight_mask_rate")
    insert = f"INSERT INTO candidates ({', '.join(columns)}) VALUES (?, ?, ?, ?, ?, ?)"
    with sqlite3.connect(path) as connection:
        connection.execute(insert, ("draw 0", "draw", json.dumps(BEFORE), 0.5, 0.7, 0.2))
    mixup, mask = Mixup((0.25, 0.75)), mask_of()
    first = parameters_of("ties_merging", scaling_coefficient=0.7, mask=mask, mixup=mixup)
    space = SearchSpace(
        2,
        parameters_of("ties_merging", scaling_coefficient=0.7, mask=mask),
        Values((0.5,)),
        {"scaling_coefficient": Values((0.7, 1.0))},
    )
    second = Candidate("draw 1", "draw", space.merge((0.5, 0.5), {"scaling_coefficient": 1.0}), 0.5)
    with SearchStore(path, {**IDENTITY, "space": space.to_fields()}) as store:
        store.add_candidate(second)
        assert store.candidates() == [Candidate("draw 0", "draw", first, 0.5), second]
        for name in ("draw 0", "draw 1"):
            store.add_result(result(name, 8, 4))
    rows = export(path, tmp_path / "results.csv")
    assert [(row["scaling_coefficient"], row["weight_mask_rate"]) for row in rows] == [("0.7", "0.2"), ("1.0", "0.2")]
    with pytest.raises(UserError, match=r"holds another search: space"):
        SearchStore(path, {**IDENTITY, "space": replace(space, options={}).to_fields()})


def test_another_search_is_refused_by_its_differences(path):
    SearchStore(path, IDENTITY).close()
    with pytest.raises(UserError) as caught:
        SearchStore(path, {**IDENTITY, "seed": 1, "engine": "vllm"})
    message = str(caught.value)
    assert message.startswith(f"{path}: holds another search: seed (0 there, 1 here), engine (null there, ")
    assert "name another file" in message and "\n" not in message
    SearchStore(path, IDENTITY).close()  # the file is unchanged
    with pytest.raises(UserError, match=r"a search of an earlier version.*name another file"):
        SearchStore(path, {**IDENTITY, "engine_dtype": "float32"})


@pytest.mark.parametrize(
    ("place", "text", "reason"),
    [
        ("search SET identity", "{", "not JSON"),
        ("search SET identity", '{"roles": "math"}', "roles: input should be"),
        ("search SET identity", json.dumps({**IDENTITY, "split": "\0"}), "the character NUL"),
        (
            "candidates SET parameters",
            json.dumps({**TIES.parameters.to_fields(), "seed": "0"}),
            "seed: input should be",
        ),
        ("candidates SET parameters", json.dumps({**TIES.parameters.to_fields(), "other": 1}), "other"),
    ],
)
def test_stored_json_of_wrong_types_is_one_line(path, place, text, reason):
    with SearchStore(path, IDENTITY) as store:
        store.add_candidate(TIES)
    change(path, f"UPDATE {place} = '{text}'")
    with pytest.raises(UserError, match=rf"^{path}[^\n]*{reason}[^\n]*$"):
        SearchStore(path).candidates()


def truncated(path: Path) -> None:
    SearchStore(path, IDENTITY).close()
    path.write_bytes(path.read_bytes()[:5000])


def later_format(path: Path) -> None:
    SearchStore(path, IDENTITY).close()
    change(path, "PRAGMA user_version = 99")


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: path.write_text("draw,score\n" * 100), "damaged or not a SQLite file"),
        (lambda path: change(path, "CREATE TABLE search (identity)"), "not the results file of a search"),
        (later_format, "has format 99"),
        (truncated, "damaged or not a SQLite file"),
        (Path.mkdir, "unable to open"),
    ],
)
def test_a_file_that_is_no_search_is_one_line_and_left_alone(path, make, reason):
    make(path)
    before = path.read_bytes() if path.is_file() else None
    for open_store in (lambda: SearchStore(path, IDENTITY), lambda: SearchStore(path)):
        with pytest.raises(UserError, match=f"^{path}: [^\n]*{reason}[^\n]*$"):
            open_store()
    assert before is None or path.read_bytes() == before


def test_a_full_disk_is_one_line_and_the_file_stays_whole(path):
    with SearchStore(path, IDENTITY) as store:
        store.add_candidate(TIES)
        store._connection.execute("PRAGMA max_page_count = 20")
        with pytest.raises(UserError, match=f"{path}: database or disk is full"):
            store.add_answers("draw 0", "gsm8k", VALIDATION, [answer(i, completion="x" * 1000) for i in range(200)])
        assert store.answers("draw 0", "gsm8k", VALIDATION) == {}


def export(path: Path, to: Path) -> list[dict[str, str]]:
    with SearchStore(path) as store:
        store.export_csv(to)
    with open(to, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_an_export_has_every_parameter_at_the_largest_number_of_examples(path, tmp_path):
    with SearchStore(path, IDENTITY) as store:
        for candidate in (PLAIN, TIES):
            store.add_candidate(candidate)
        for examples in (32, 8):
            store.add_result(result("draw 0", examples, examples // 2))
        store.add_result(result("draw 0", 8, 1, task="MATH"))
        store.add_result(result("draw 0", 100, 30, part=TEST))
        store.add_result(result("without M3", 8, 8))
    rows = export(path, tmp_path / "results.csv")
    assert [(row["candidate"], row["task"], row["part"], row["examples"]) for row in rows] == [
        ("without M3", "gsm8k", "validation", "8"),
        ("draw 0", "MATH", "validation", "8"),
        ("draw 0", "gsm8k", "validation", "32"),
        ("draw 0", "gsm8k", "test", "100"),
    ]
    low, high = result("draw 0", 32, 16).interval
    assert ",".join(rows[2]) == (
        "candidate,kind,alpha,ratio_instruct,ratio_math,method,scaling_coefficient,param_value_mask_rate,seed,dtype,"
        "weight_mask_rate,use_weight_rescale,use_l1_rescale,mask_strategy,weight_format,exclude_param_names_regex,"
        "task,part,examples,right,score,interval_low,interval_high,seconds,time"
    )
    assert "|".join(rows[2].values()) == (
        f"draw 0|draw|0.5|0.1234567890123456|{1 - 0.1234567890123456}|ties_merging|0.7|0.5|4|bfloat16|"
        '0.3|1|0|random|delta_weight|["lm_head", "a,b"]|'
        f"gsm8k|validation|32|16|0.5|{low}|{high}|2.5|2023-11-14T22:13:20Z"
    )
    assert rows[0]["ratio_instruct"] == rows[0]["weight_mask_rate"] == rows[0]["dtype"] == ""
    with sqlite3.connect(path) as connection:
        cursor = connection.execute("SELECT * FROM results")
    assert [name for name, *_ in cursor.description] == list(rows[0]), "the view that a researcher opens"


def test_an_export_replaces_an_earlier_one_and_nothing_else(path, tmp_path):
    with SearchStore(path, IDENTITY) as store:
        store.add_candidate(TIES)
        store.add_result(result("draw 0", 8, 4))
    assert export(path, tmp_path / "exported.csv") == export(path, tmp_path / "exported.csv")
    other = tmp_path / "notes.txt"
    other.write_text("candidate for deletion")
    for place in (other, tmp_path):
        with pytest.raises(UserError, match=f"{place}: is not an earlier export"):
            export(path, place)
    assert other.read_text() == "candidate for deletion"
