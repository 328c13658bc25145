"""LiveBench: questions in every layout, answers in its format, and two rules for typos."""

import json
import shutil
from pathlib import Path

import pytest

from inference_llms.livebench_files import LiveBenchSet, answer_id
from inference_llms.tasks import TASKS, instruction_following, typos
from tests.inference_llms.support import DATA, ZOO, needs_data, write_rows
from utils.errors import UserError

QUESTIONS = ZOO / "data" / "live_bench"
CODING = LiveBenchSet("coding")


def question(**fields: object) -> dict:
    row = {"question_id": "q1", "task": "typos", "turns": ["Correct this.\n\nTeh cat."], "ground_truth": "The cat."}
    return row | fields


def refusal(folder: Path, task: str = "coding", release: str | None = None) -> str:
    with pytest.raises(UserError) as error:
        TASKS[task].load_examples(folder, release)
    assert "\n" not in str(error.value)
    return str(error.value)


@needs_data
def test_published_questions_are_prompted_by_their_first_turn():
    examples = TASKS["instruction_following"].load_examples(DATA)
    tasks = {"paraphrase", "simplify", "story_generation", "summarize"}
    assert len(examples) == 100 and {example.row["task"] for example in examples} == tasks
    row = json.loads((DATA / "livebench/instruction_following/paraphrase/question.jsonl").read_text().splitlines()[0])
    assert (examples[0].id, examples[0].prompt) == (row["question_id"], row["turns"][0])


def as_parquet(path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = [json.loads(line) for file in sorted(QUESTIONS.glob("coding/*/*")) for line in file.read_text().splitlines()]
    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_list(rows).to_parquet(path)


@pytest.mark.parametrize(
    "write",
    [
        lambda folder: shutil.copytree(QUESTIONS, folder, dirs_exist_ok=True),
        lambda folder: shutil.copytree(QUESTIONS, folder / "data/live_bench"),
        lambda folder: as_parquet(folder / "coding.parquet"),
        lambda folder: as_parquet(folder / "livebench/coding/data/test-00000-of-00001.parquet"),
    ],
    ids=["tree", "LiveBench's data", "one parquet file", "the hub's folder"],
)
def test_questions_are_found_in_every_layout(write, tmp_path):
    write(tmp_path)
    rows, expected = CODING.load_rows(tmp_path), CODING.load_rows(QUESTIONS)
    assert [row.fields["question_id"] for row in rows] == [row.fields["question_id"] for row in expected]
    assert len(rows) == 12 and rows[0].fields["turns"] == expected[0].fields["turns"]


def test_a_release_has_questions_published_and_not_removed(tmp_path):
    dates = {"a": ("2024-06-24", ""), "b": ("2024-06-24", "2024-11-25"), "c": ("2024-11-25", "")}
    rows = [
        question(question_id=name, task="t", livebench_release_date=out, livebench_removal_date=removed)
        for name, (out, removed) in dates.items()
    ]
    write_rows(tmp_path / "coding/t/question.jsonl", rows)
    found = {
        release: [example.id for example in TASKS["coding"].load_examples(tmp_path, release)]
        for release in (None, "2024-08-31", "2024-11-25")
    }
    assert found == {None: ["a", "b", "c"], "2024-08-31": ["a", "b"], "2024-11-25": ["a", "c"]}
    assert "--livebench_release 2023-01-01" in refusal(tmp_path, release="2023-01-01")


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("The answer is: reply.\n ", "reply."),
        (" The answer is: a. The answer is: b!", "a.  b"),
        ("...\n\n  two\nlines \n", "two\nlines"),
        ("", ""),
    ],
)
def test_answers_lose_marks_punctuation_newlines_and_spaces_once(completion, expected):
    assert instruction_following.make_answer(completion) == expected


@pytest.mark.parametrize(
    ("completion", "ours", "livebenchs"),
    [
        ("Sure:\nThe cat.\n\n", True, True),
        ("The cat.\nI corrected one word.", False, True),
        ("The\ncat.", False, True),
        ("The dog.", False, False),
        ("<solution>The cat.</solution>\nDone.", False, True),
        ("The cat. <solution>The dog.</solution>", True, False),
        ("I say --- The cat. --- as asked", True, True),
        ("The cat. I say --- The dog. --- as asked", True, False),
        (" \n ", False, False),
    ],
)
def test_typos_are_scored_by_the_papers_rule_and_by_livebenchs(completion, ours, livebenchs):
    assert typos.is_right(completion, question()) is ours
    assert typos.is_right_for_livebench(completion, question()) is livebenchs


def test_typos_uses_only_the_questions_of_its_task():
    examples = TASKS["typos"].load_examples(QUESTIONS)
    assert len(examples) == 12 and {example.row["task"] for example in examples} == {"typos"}


def test_answer_ids_have_livebenchs_form_and_are_unique_and_stable():
    ids = {answer_id(model, question, time) for model in "ab" for question in "cd" for time in (1.0, 2.0)}
    assert len(ids) == 8 and all(len(one) == 22 and one.isalnum() for one in ids)
    assert answer_id("a", "c", 1.0) in ids


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (question(turns=[]), "the question has no turns"),
        (question(turns=[" "]), "the question has no turns"),
        (question(turns=[1]), "the question has no turns"),
        (question(turns="a"), "must be a list"),
        ({"question_id": "q", "turns": ["a"]}, "lacks the field 'task'"),
        (question(task="../x"), "cannot name a folder"),
        (question(question_id=7), "must be text"),
        (question(), "repeats the question_id 'q1'"),
    ],
)
def test_a_malformed_question_is_named_with_its_line(row, message, tmp_path):
    write_rows(tmp_path / "coding/t/question.jsonl", [question(), row])
    assert message in (error := refusal(tmp_path)) and "question.jsonl line 2" in error


def test_every_fault_of_a_file_is_reported_in_one_line(tmp_path):
    file = tmp_path / "coding/t/question.jsonl"
    write_rows(file, [question()])
    assert "livebench_release_date" in refusal(tmp_path, release="2024-11-25")
    assert "is not a folder" in refusal(tmp_path / "nowhere")
    file.unlink()
    (tmp_path / "coding.parquet").write_bytes(b"no parquet")
    assert "is not a complete parquet file" in refusal(tmp_path)
    for row, message in ((question(ground_truth=""), "ground_truth"), (question(task="x"), "has the task typos")):
        write_rows(tmp_path / "language/typos/question.jsonl", [row])
        assert message in refusal(tmp_path, "typos")
