"""Health of answers: what counts as a fault, and when a score shows it."""

import json

import pytest

from inference_llms.answer_health import Health, health_of, health_on_record, repeats_itself
from tests.inference_llms.support import DATA, ZOO, needs_data, read_json_lines, replay, run_command_here, write_rows

SENTENCE = "I'm not sure if I can do that. "

REPEATING = {
    "one sentence": SENTENCE * 4,
    "cut in the middle of a copy": SENTENCE * 4 + SENTENCE[:13],
    "after a sound beginning": "Natalia sold 48 / 2 = 24 clips in May. The answer is: 72\n\n" + SENTENCE * 5,
    "spaced unevenly": "\n".join([SENTENCE, SENTENCE + " ", SENTENCE, "\t" + SENTENCE]),
    "one sign, of logits that are NaN": "!" * 120,
    "no spaces": "positive" * 20,
    "a long passage": "".join(f"{number}. Write the program of step {number}.\n" for number in range(40)) * 3,
    "no letters of ASCII": "答案是五。" * 25,
    "SmolLM2-135M on GSM8K": " 3 sprints a week is 180.\n" + "#### 540\n" * 14 + "#### 5",
}
SOUND = {
    "an answer": "Natalia sold 48 + 24 = 72 clips altogether in April and May. The answer is: 72",
    "one word": "positive",
    "a word said thrice": "no no no",
    "a list that counts": ", ".join(map(str, range(60))),
    "a program that ends in a list of zeros": "def zeros():\n    return [" + "0, " * 60 + "0]",
    "the same text twice": SENTENCE * 2,
    "a repetition that ends": SENTENCE * 5 + "So the answer is 5, which is what the question asked for.",
}


@pytest.mark.parametrize("name", [*REPEATING, *SOUND])
def test_a_text_repeats_itself_if_it_ends_in_copies(name):
    assert repeats_itself({**REPEATING, **SOUND}[name]) is (name in REPEATING)


@needs_data
def test_no_text_of_the_evaluation_sets_repeats_itself():
    rows = [*read_json_lines(DATA / "gsm8k_test.jsonl"), *read_json_lines(DATA / "mbpp.test.jsonl")]
    rows += [*read_json_lines(DATA / "MATH_test_500.jsonl"), *json.loads((DATA / "alpaca_eval.json").read_text())]
    texts = [text for row in rows for text in row.values() if isinstance(text, str)]
    assert len(texts) > 5000 and [text for text in texts if repeats_itself(text)] == []


@pytest.mark.parametrize(
    ("texts", "cut_off", "readable", "warning"),
    [
        (["5", "6", "7"], [False] * 3, [True] * 3, None),
        (["x"], [False], None, None),
        (["", " \n", "7"], [False] * 3, [False, False, True], "of 3 answers: 2 empty, 2 without a readable answer"),
        ([*"abcdefghij"], [True] + [False] * 9, None, None),
        ([*"abcdefghij"], [True] * 2 + [False] * 8, None, "of 10 answers: 2 cut off at the token limit"),
        (["a", "a" * 200], [False, True], None,
         "of 2 answers: 1 cut off at the token limit, 1 repeating the same text to the end"),
        (["yes"] * 4, [False] * 4, None, "of 4 answers: 4 equal"),
        (["", ""], [False] * 2, None, "of 2 answers: 2 empty"),
        (["yes", "no"] * 4, [None] * 8, None, None),
    ],
)  # fmt: skip
def test_a_fault_of_more_than_one_answer_in_ten_is_shown(texts, cut_off, readable, warning):
    assert health_of(texts, cut_off, readable).warning() == warning


SOUND_HEALTH = {"answers": 3, "empty": 0, "cut_off": None, "repeating": 0, "unreadable": None, "same": 1}
WRONG_COUNTS = [{"empty": 4}, {"cut_off": -1}, {"same": 1.0}, {"unreadable": "1"}, {"repeating": None}]


@pytest.mark.parametrize("value", [[], "x", {}, {"answers": 1}, *(SOUND_HEALTH | wrong for wrong in WRONG_COUNTS)])
def test_a_record_of_another_form_has_no_health(value):
    with pytest.raises(ValueError, match="health"):
        health_on_record(value)


def test_replayed_answers_are_counted_without_knowing_which_were_cut_off(tmp_path):
    write_rows(tmp_path / "data/gsm8k_test.jsonl", [{"question": f"{n}?", "answer": f"#### {n}"} for n in range(4)])
    texts = ["", "The answer is: 1", SENTENCE * 9, "The answer is: 3"]
    write_rows(tmp_path / "replay/gsm8k.jsonl", [{"id": n, "completion": text} for n, text in enumerate(texts)])
    scores = replay(tmp_path, "--tasks", "gsm8k", "--data_dir", tmp_path / "data")
    expected = Health(answers=4, empty=1, cut_off=None, repeating=1, unreadable=2, same=1)
    assert health_on_record(scores["gsm8k"]["health"]) == expected


@pytest.mark.parametrize("max_tokens", [3, 1024])
def test_the_screen_shows_cut_off_answers_and_only_those(tmp_path, max_tokens):
    """Also when the completions are read from the file of an earlier run."""
    words = ["--load_model_path", ZOO / "math", "--data_dir", ZOO / "data", "--output_dir", tmp_path, "--tasks",
             "gsm8k", "--end_index", 6, "--backend", "transformers", "--max_tokens", max_tokens]  # fmt: skip
    for _ in range(2):
        done = run_command_here(*words)
        assert done.returncode == 0, done.stderr
        warning = "gsm8k.jsonl: of 6 answers: 6 cut off at the token limit, 6 without a readable answer"
        assert (warning in done.stdout) is (max_tokens == 3) and ("check the" in done.stdout) is (max_tokens == 3)
    health = json.loads((tmp_path / "save_scores/single_model/math.json").read_text())["gsm8k"]["health"]
    assert health["cut_off"] == (6 if max_tokens == 3 else 0) and health["empty"] == health["repeating"] == 0
