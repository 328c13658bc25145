"""LiveBench: questions from wherever they lie, prompts, answers in its form, the score of typos."""

import json
import shutil
from pathlib import Path

import pytest
from inference_llms.tasks.livebench import answer_id, load_questions

from inference_llms.engines.engine import Sampling
from inference_llms.tasks import livebench_coding, livebench_instruction_following, livebench_typos
from tests.inference_llms.support import DATA, ROOT, golden, needs_data, needs_golden, write_rows
from utils.errors import UserError

QUESTIONS = ROOT / "scripts" / "tiny_zoo" / "data" / "live_bench"


def question(**fields) -> dict:
    return {
        "question_id": "q1",
        "task": "typos",
        "turns": ["Mend this.\n\nTeh cat."],
        "ground_truth": "The cat.",
    } | fields


def refusal(folder: Path, category: str = "coding", **options) -> str:
    with pytest.raises(UserError) as error:
        load_questions(category, folder, **options)
    return str(error.value)


@needs_data
def test_all_published_questions_of_instruction_following_are_asked_by_their_first_turn():
    examples = livebench_instruction_following.task(None, "m").load_examples(DATA)
    assert len(examples) == 100 and {example.row["task"] for example in examples} == {
        "paraphrase", "simplify", "story_generation", "summarize",
    }  # fmt: skip
    row = json.loads((DATA / "livebench/instruction_following/paraphrase/question.jsonl").read_text().splitlines()[0])
    assert (examples[0].id, examples[0].prompt) == (row["question_id"], row["turns"][0])


def as_tree(folder: Path) -> None:
    shutil.copytree(QUESTIONS, folder, dirs_exist_ok=True)


def as_data_of_livebench(folder: Path) -> None:
    shutil.copytree(QUESTIONS, folder / "data/live_bench")


def parquet(path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = [json.loads(line) for file in sorted(QUESTIONS.glob("coding/*/*")) for line in file.read_text().splitlines()]
    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_list(rows).to_parquet(path)


def as_one_parquet_file(folder: Path) -> None:
    parquet(folder / "coding.parquet")


def as_the_hubs_folder(folder: Path) -> None:
    parquet(folder / "livebench/coding/data/test-00000-of-00001.parquet")


@pytest.mark.parametrize("lay", [as_tree, as_data_of_livebench, as_one_parquet_file, as_the_hubs_folder])
def test_questions_are_found_however_they_lie(lay, tmp_path):
    lay(tmp_path)
    rows = load_questions("coding", tmp_path)
    expected = load_questions("coding", QUESTIONS)
    assert [row.fields["question_id"] for row in rows] == [row.fields["question_id"] for row in expected]
    assert len(rows) == 12 and rows[0].fields["turns"] == expected[0].fields["turns"]


def test_a_release_has_what_was_out_and_not_removed(tmp_path):
    dates = {"a": ("2024-06-24", ""), "b": ("2024-06-24", "2024-11-25"), "c": ("2024-11-25", "")}
    write_rows(
        tmp_path / "coding/t/question.jsonl",
        [
            question(question_id=name, task="t", livebench_release_date=out, livebench_removal_date=removed)
            for name, (out, removed) in dates.items()
        ],
    )

    def of_release(release):
        return [row.fields["question_id"] for row in load_questions("coding", tmp_path, release)]

    assert of_release(None) == ["a", "b", "c"]
    assert of_release("2024-08-31") == ["a", "b"]
    assert of_release("2024-11-25") == ["a", "c"]
    assert "--livebench_release 2023-01-01" in refusal(tmp_path, release="2023-01-01")


@needs_golden
def test_the_prompt_of_typos_and_the_sampling_are_the_published_ones():
    assert livebench_typos.make_prompt(
        "Please output this exact text, fixing the misspellings.\n\nTeh cat sat.\n\nSecond para."
    ) == golden("livebench")["typos"]["prompt_example"]  # fmt: skip
    for module in (livebench_instruction_following, livebench_typos):
        settings = golden("livebench")[module.NAME]["sampling"]
        expected = Sampling(
            settings["max_tokens"], tuple(settings.get("stop", ())), settings["temperature"], settings["top_p"]
        )
        assert expected == module.SAMPLING


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("The answer is: reply.\n ", "reply."),
        (" The answer is: a. The answer is: b!", "a.  b"),
        ("...\n\n  two\nlines \n", "two\nlines"),
        ("", ""),
    ],
)
def test_answers_to_instruction_following_lose_marks_then_punctuation_newlines_and_spaces_once(completion, expected):
    assert livebench_instruction_following.answer(completion) == expected


@pytest.mark.parametrize(
    ("completion", "ours", "livebenchs"),
    [
        ("Sure:\nThe cat.\n\n", True, True),
        ("The cat.\nI mended one word.", False, True),
        ("The\ncat.", False, True),
        ("The dog.", False, False),
        ("<solution>The cat.</solution>\nDone.", False, True),
        ("The cat. <solution>The dog.</solution>", True, False),
        ("I say --- The cat. --- as asked", True, True),
        ("The cat. I say --- The dog. --- as asked", True, False),
        ("", False, False),
        (" \n ", False, False),
    ],
)
def test_typos_by_the_paper_and_by_livebench(completion, ours, livebenchs):
    assert livebench_typos.is_correct(completion, "The cat.") is ours
    assert livebench_typos.is_correct_for_livebench(completion, "The cat.") is livebenchs


def test_typos_asks_the_rows_of_its_task_alone():
    examples = livebench_typos.task(None, "m").load_examples(QUESTIONS)
    assert len(examples) == 12 and {example.row["task"] for example in examples} == {"typos"}


def test_an_answers_id_is_of_livebenchs_form_and_its_own():
    ids = {answer_id(model, question, time) for model in "ab" for question in "cd" for time in (1.0, 2.0)}
    assert len(ids) == 8 and all(len(one) == 22 and one.isalnum() for one in ids)
    assert answer_id("a", "c", 1.0) in ids


@pytest.mark.parametrize(
    ("row", "told"),
    [
        (question(turns=[]), "the question has no turns"),
        (question(turns=[" "]), "the question has no turns"),
        (question(turns=[1]), "the question has no turns"),
        (question(turns="a"), "must be a list"),
        ({"question_id": "q", "turns": ["a"]}, "lacks the field 'task'"),
        (question(task="../x"), "cannot name a folder"),
        (question(question_id=7), "must be text"),
    ],
)
def test_a_malformed_question_is_named_with_its_line(row, told, tmp_path):
    write_rows(tmp_path / "coding/t/question.jsonl", [question(), row])
    line = refusal(tmp_path)
    assert told in line and "question.jsonl line 2" in line and "\n" not in line


def test_whatever_is_wrong_with_a_file_is_told_in_one_line(tmp_path):
    file = tmp_path / "coding/t/question.jsonl"
    write_rows(file, [])
    assert "holds no examples" in refusal(tmp_path)
    file.write_text("{broken")
    assert "line 1 is not JSON" in refusal(tmp_path)
    write_rows(file, [question(), question()])
    assert "'q1'" in refusal(tmp_path)
    write_rows(file, [question()])
    assert "livebench_release_date" in refusal(tmp_path, release="2024-11-25")
    assert "is not a folder" in refusal(tmp_path / "nowhere")
    file.unlink()
    (tmp_path / "coding.parquet").write_bytes(b"no parquet")
    assert "is not a whole parquet file" in refusal(tmp_path)
    write_rows(tmp_path / "language/typos/question.jsonl", [question(ground_truth="")])
    with pytest.raises(UserError, match="ground_truth"):
        livebench_typos.task(None, "m").load_examples(tmp_path)
    write_rows(tmp_path / "language/typos/question.jsonl", [question(task="connections")])
    with pytest.raises(UserError, match="has the task typos"):
        livebench_typos.task(None, "m").load_examples(tmp_path)


def test_coding_is_asked_bare():
    examples = livebench_coding.task(None, "m").load_examples(QUESTIONS)
    assert examples[0].prompt.startswith("Write a function double(x)")
