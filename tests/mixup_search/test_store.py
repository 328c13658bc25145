"""The results file of a search: kept through kills, shared by processes, readable by sqlite3."""

import csv
import json
import os
import sqlite3
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model_merging_methods.merge_parameters import Mask, MergeParameters, Mixup
from model_merging_methods.mixup import two_model_weights
from scripts.mixup_search.candidate import TEST, VALIDATION, Answer, Candidate, Result
from scripts.mixup_search.claims import CLAIM_LASTS
from scripts.mixup_search.store import SearchStore
from utils.errors import UserError

ROOT = Path(__file__).resolve().parent.parent.parent
IDENTITY = {
    "roles": ["instruct", "math"],
    "tasks": ["gsm8k", "MATH"],
    "role_of_task": {"gsm8k": "math", "MATH": "math"},
    "draw_by": "mixup",
    "num_draws": 2,
    "seed": 0,
    "space": {},
    "rungs": (8, 32),
    "validation": {"gsm8k": 32, "MATH": 32},
    "test": {"gsm8k": 8, "MATH": 8},
    "models": {"pretrained": None, "instruct": None, "math": None},
    "models_dir": None,
    "allow_unrelated": False,
    "split": "",
    "backend": "transformers",
}
TIES = Candidate(
    "draw 0",
    "draw",
    MergeParameters(
        "ties_merging",
        scaling_coefficient=0.7,
        mask=Mask(0.3, True),
        mixup=Mixup(two_model_weights(0.1234567890123456)),
        seed=4,
        dtype="bfloat16",
        exclude_param_names_regex=("lm_head", "a,b"),
    ),
    alpha=0.5,
)
PLAIN = Candidate("without M3", "plain", MergeParameters("task_arithmetic"))


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "results.sqlite"


def answer(example: int | str, right: bool = True, completion: str = "The answer is 4.\n") -> Answer:
    return Answer(example, completion, right, 1_700_000_000.5)


def result(candidate: str, examples: int, right: int, task: str = "gsm8k", part: str = VALIDATION) -> Result:
    return Result(candidate, task, part, examples, right, 2.5, 1_700_000_000.0)


def test_a_file_without_the_health_of_answers_is_read_and_continued(path):
    with SearchStore(path, IDENTITY) as store:
        store.add_answers("draw 0", "gsm8k", VALIDATION, [answer(1)])
    with sqlite3.connect(path) as connection:
        for column in ("cut_off", "readable"):
            connection.execute(f"ALTER TABLE answers DROP COLUMN {column}")
    store = SearchStore.open_existing(path)
    assert store.answers("draw 0", "gsm8k", VALIDATION) == {1: answer(1)}
    store.close()
    later = replace(answer(2), cut_off=True, readable=False)
    with SearchStore(path, IDENTITY) as store:
        store.add_answers("draw 0", "gsm8k", VALIDATION, [later])
        assert store.answers("draw 0", "gsm8k", VALIDATION) == {1: answer(1), 2: later}


def test_all_that_was_stored_is_there_again(path):
    with SearchStore(path, IDENTITY) as store:
        store.add_candidate(TIES)
        store.add_candidate(PLAIN)
        store.add_answers("draw 0", "gsm8k", VALIDATION, [answer(1), answer("1", False, "ü\0é")])
        store.add_answers("draw 0", "gsm8k", TEST, [answer(1, False)])
        store.add_result(result("without M3", 8, 3))
        store.add_result(result("draw 0", 32, 20))
        store.add_result(result("draw 0", 8, 5))
        store.add_result(result("draw 0", 32, 9, part=TEST))
    for reopened in (SearchStore(path, IDENTITY), SearchStore.open_existing(path)):
        with reopened as store:
            assert store.identity == {**IDENTITY, "rungs": [8, 32]}
            assert store.candidates() == [TIES, PLAIN]
            assert store.answers("draw 0", "gsm8k", VALIDATION) == {1: answer(1), "1": answer("1", False, "ü\0é")}
            assert store.answers("draw 0", "gsm8k", TEST) == {1: answer(1, False)}
            assert store.answers("draw 0", "MATH", TEST) == {}
            assert store.results() == [
                result("draw 0", 8, 5),
                result("draw 0", 32, 20),
                result("draw 0", 32, 9, part=TEST),
                result("without M3", 8, 3),
            ]


@settings(deadline=None, max_examples=25)
@given(ratio=st.floats(0, 1), scale=st.floats(allow_nan=False, allow_infinity=False), alpha=st.floats(0, 10))
def test_parameters_come_back_to_the_last_bit(tmp_path_factory, ratio, scale, alpha):
    merge = MergeParameters("ties_merging", scaling_coefficient=scale, mixup=Mixup(two_model_weights(ratio)))
    candidate = Candidate("draw 0", "draw", merge, alpha)
    with SearchStore(tmp_path_factory.mktemp("search") / "results", IDENTITY) as store:
        assert store.add_candidate(candidate) == candidate
        assert store.candidates() == [candidate]


def test_what_is_stored_first_stays(path):
    other = Candidate("draw 0", "draw", MergeParameters("average_merging", mixup=Mixup((1.0, 0.0))))
    with SearchStore(path, IDENTITY) as store:
        assert store.add_candidate(TIES) == TIES
        assert store.add_candidate(other) == TIES
        store.add_answers("draw 0", "gsm8k", VALIDATION, [answer(1), answer(2)])
        store.add_answers("draw 0", "gsm8k", VALIDATION, [answer(2, False, "other"), answer(3)])
        assert store.answers("draw 0", "gsm8k", VALIDATION) == {1: answer(1), 2: answer(2), 3: answer(3)}
        store.add_result(result("draw 0", 8, 5))
        store.add_result(result("draw 0", 8, 6))
        assert store.results() == [result("draw 0", 8, 5)]
        assert store.candidates() == [TIES]


def test_another_search_is_told_by_what_differs(path):
    SearchStore(path, IDENTITY).close()
    with pytest.raises(UserError) as caught:
        SearchStore(path, {**IDENTITY, "seed": 1, "engine": "vllm"})
    message = str(caught.value)
    assert message.startswith(f"{path}: holds another search: seed (0 there, 1 here), engine (null there, ")
    assert "name another file" in message
    assert "\n" not in message


def test_a_search_of_an_earlier_version_is_named(path):
    SearchStore(path, IDENTITY).close()
    with pytest.raises(UserError, match=r"a search of an earlier version.*name another file"):
        SearchStore(path, {**IDENTITY, "engine_dtype": "float32"})


@pytest.mark.parametrize(
    ("place", "text", "told"),
    [
        ("search SET identity", "5", "input should be"),
        ("search SET identity", "{", "not JSON"),
        ("search SET identity", '{"roles": "math"}', "roles: input should be"),
        ("search SET identity", json.dumps({**IDENTITY, "split": "\0"}), "the character NUL"),
        ("candidates SET parameters", '{"method": []}', "method: input should be"),
        ("candidates SET parameters", '{"method": "ties_merging", "seed": "0"}', "seed: input should be"),
        ("candidates SET parameters", json.dumps({**asdict(TIES.parameters), "other": 1}), "other"),
    ],
)
def test_stored_json_of_wrong_types_is_one_line(path, place, text, told):
    with SearchStore(path, IDENTITY) as store:
        store.add_candidate(TIES)
    with sqlite3.connect(path) as connection:
        connection.execute(f"UPDATE {place} = ?", (text,))
    with pytest.raises(UserError, match=rf"{path}.*{told}") as caught:
        SearchStore.open_existing(path).candidates()
    assert "\n" not in str(caught.value)


def text_file(path: Path) -> None:
    path.write_text("draw,score\n" * 100)


def other_database(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE search (identity)")


def later_format(path: Path) -> None:
    SearchStore(path, IDENTITY).close()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")


def truncated(path: Path) -> None:
    SearchStore(path, IDENTITY).close()
    path.write_bytes(path.read_bytes()[:5000])


@pytest.mark.parametrize("make", [text_file, other_database, later_format, truncated, Path.mkdir])
def test_a_file_that_holds_no_search_is_told_in_a_line_and_left_alone(path, make):
    make(path)
    before = path.read_bytes() if path.is_file() else None
    for open_store in (lambda: SearchStore(path, IDENTITY), lambda: SearchStore.open_existing(path)):
        with pytest.raises(UserError, match=f"^{path}: [^\n]*$"):
            open_store()
    assert before is None or path.read_bytes() == before


def test_an_absent_file_is_not_made_by_reading_it(path):
    with pytest.raises(UserError, match="no such file"):
        SearchStore.open_existing(path)
    assert not path.exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_file_that_may_not_be_written_is_told_in_a_line(path):
    SearchStore(path, IDENTITY).close()
    path.chmod(0o400)
    with pytest.raises(UserError, match=f"{path}: .*readonly"):
        SearchStore(path, IDENTITY)
    with SearchStore.open_existing(path) as store:
        assert store.candidates() == []


def test_a_full_disk_is_told_in_a_line_and_the_file_stays_whole(path):
    with SearchStore(path, IDENTITY) as store:
        store.add_candidate(TIES)
        store._connection.execute("PRAGMA max_page_count = 20")
        with pytest.raises(UserError, match=f"{path}: database or disk is full"):
            store.add_answers("draw 0", "gsm8k", VALIDATION, [answer(i, completion="x" * 1000) for i in range(200)])
        assert store.answers("draw 0", "gsm8k", VALIDATION) == {}


@pytest.fixture
def start():
    """Start a Python process with some code and arguments, to be killed at the latest when the test ends."""
    started = []

    def start_process(code: str, *arguments: object) -> subprocess.Popen:
        command = [sys.executable, "-c", code, *map(str, arguments)]
        process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        started.append(process)
        return process

    yield start_process
    for process in started:
        process.kill()
        process.communicate()


WRITER = """
import json
import sys
import time
from itertools import count
from pathlib import Path
from scripts.mixup_search.candidate import Answer
from scripts.mixup_search.store import SearchStore

with SearchStore(Path(sys.argv[1]), json.loads(sys.argv[2])) as store:
    for batch in count():
        answers = [Answer(f"{sys.argv[3]} {batch} {i}", "x" * 500, True, 0.0) for i in range(20)]
        store.add_answers("draw 0", "gsm8k", "validation", answers)
        print(batch, flush=True)
        time.sleep(0.05)  # in which a search computes answers, and other processes come to write
"""


def test_kills_of_writers_lose_nothing_that_was_stored(path, start):
    for killed in range(2):
        writers = [start(WRITER, path, json.dumps(IDENTITY), f"{killed}-{i}") for i in range(2)]
        stored = {}
        for writer in writers:
            while int(writer.stdout.readline()) < 5 + 3 * killed:
                pass
        for i, writer in enumerate(writers):
            writer.kill()
            stored[i] = [int(line) for line in writer.stdout.read().split()]
            writer.wait()
        with SearchStore.open_existing(path) as store:
            batches: dict[str, int] = {}
            for example in store.answers("draw 0", "gsm8k", VALIDATION):
                name = example.rpartition(" ")[0]
                batches[name] = batches.get(name, 0) + 1
        assert set(batches.values()) == {20}
        for i in range(2):
            last = max(stored[i], default=5 + 3 * killed)
            assert all(f"{killed}-{i} {batch}" in batches for batch in range(last + 1))
    with SearchStore(path, IDENTITY) as store:
        store.add_candidate(TIES)


CLAIMER = """
import json
import sys
from pathlib import Path
from scripts.mixup_search.store import SearchStore

with SearchStore(Path(sys.argv[1]), json.loads(sys.argv[2])) as store:
    print(*[number for number in range(40) if store.claim(f"draw {number}", "validation")], flush=True)
    sys.stdin.read()
"""


def test_a_candidate_is_one_process_s_until_that_is_dead(path, start):
    numbers = set(range(40))
    claimers = [start(CLAIMER, path, json.dumps(IDENTITY)) for _ in range(2)]
    first, second = ({int(number) for number in claimer.stdout.readline().split()} for claimer in claimers)
    assert first | second == numbers
    assert not first & second
    with SearchStore(path, IDENTITY) as store:

        def taken() -> set[int]:
            return {number for number in numbers if store.claim(f"draw {number}", VALIDATION)}

        assert taken() == set()
        assert store.claim("draw 0", TEST)
        claimers[0].kill()
        claimers[0].stdout.read()  # it is dead, and a zombie that nobody has waited for
        time.sleep(0.2)
        assert taken() == first
        claimers[1].communicate()
        assert taken() == numbers


def test_a_claim_is_given_back(path):
    with SearchStore(path, IDENTITY) as store:
        assert store.claim("draw 0", VALIDATION)
        assert store.claim("draw 0", VALIDATION), "a process has what it has claimed"
        store.release("draw 0", VALIDATION)
        assert holders(path) == []


def holders(path: Path) -> list[tuple[str, float]]:
    with sqlite3.connect(path) as connection:
        return connection.execute("SELECT holder, renewed FROM claims").fetchall()


def test_a_claim_of_another_machine_counts_until_it_was_not_renewed_for_minutes(path):
    with SearchStore(path, IDENTITY) as store:
        store.claim("draw 0", VALIDATION)
        for age, is_taken in ((CLAIM_LASTS - 60, False), (CLAIM_LASTS + 60, True)):
            with sqlite3.connect(path) as connection:
                connection.execute("UPDATE claims SET holder = 'far away:1:1', renewed = ?", (time.time() - age,))
            store.renew()  # renews this process's own alone
            assert store.claim("draw 0", VALIDATION) is is_taken
        with sqlite3.connect(path) as connection:
            connection.execute("UPDATE claims SET renewed = 0")
        store.renew()
        assert holders(path)[0][1] == pytest.approx(time.time(), abs=60)


def export(path: Path, to: Path) -> list[dict[str, str]]:
    with SearchStore.open_existing(path) as store:
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
    rows = export(path, tmp_path / "first.csv")
    assert [(row["candidate"], row["task"], row["part"], row["examples"]) for row in rows] == [
        ("without M3", "gsm8k", "validation", "8"),
        ("draw 0", "MATH", "validation", "8"),
        ("draw 0", "gsm8k", "validation", "32"),
        ("draw 0", "gsm8k", "test", "100"),
    ]
    drawn = rows[2]
    low, high = result("draw 0", 32, 16).interval
    assert drawn == {
        "candidate": "draw 0",
        "kind": "draw",
        "alpha": "0.5",
        "ratio_instruct": "0.1234567890123456",
        "ratio_math": str(1 - 0.1234567890123456),
        "method": "ties_merging",
        "scaling_coefficient": "0.7",
        "param_value_mask_rate": "0.5",
        "seed": "4",
        "dtype": "bfloat16",
        "weight_mask_rate": "0.3",
        "use_weight_rescale": "1",
        "mask_strategy": "random",
        "weight_format": "delta_weight",
        "exclude_param_names_regex": '["lm_head", "a,b"]',
        "task": "gsm8k",
        "part": "validation",
        "examples": "32",
        "right": "16",
        "score": "0.5",
        "interval_low": str(low),
        "interval_high": str(high),
        "seconds": "2.5",
        "time": "2023-11-14T22:13:20Z",
    }
    assert rows[0]["ratio_instruct"] == rows[0]["weight_mask_rate"] == rows[0]["dtype"] == ""
    export(path, tmp_path / "second.csv")
    assert (tmp_path / "first.csv").read_bytes() == (tmp_path / "second.csv").read_bytes()


def test_the_view_that_a_researcher_opens_has_the_columns_of_the_export(path, tmp_path):
    with SearchStore(path, IDENTITY) as store:
        store.add_candidate(TIES)
        store.add_result(result("draw 0", 8, 4))
    with sqlite3.connect(path) as connection:
        connection.row_factory = sqlite3.Row
        [row] = connection.execute("SELECT * FROM results")
    [exported] = export(path, tmp_path / "exported.csv")
    assert dict(zip(row.keys(), map(str, row), strict=True)) == exported


def test_an_export_replaces_an_earlier_one_and_nothing_else(path, tmp_path):
    with SearchStore(path, IDENTITY) as store:
        store.add_candidate(TIES)
        store.add_result(result("draw 0", 8, 4))
    assert export(path, tmp_path / "exported.csv") == export(path, tmp_path / "exported.csv")
    other = tmp_path / "notes.txt"
    other.write_text("candidate for deletion")
    for place in (other, tmp_path):
        with pytest.raises(UserError, match=f"{place}: "):
            export(path, place)
    assert other.read_text() == "candidate for deletion"
