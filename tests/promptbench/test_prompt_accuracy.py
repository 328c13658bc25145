"""The accuracy with a prompt: every pair asked once, all at once, kept and taken up again."""

import json

import pytest

from inference_llms.engines.engine import CutOff
from promptbench.attack import AttackParts
from promptbench.attacks import checklist, deepwordbug, semantic, stresstest
from promptbench.prompt_accuracy import SAMPLING, PromptAccuracy
from promptbench.prompt_task import Sample
from promptbench.report import attack_report, check_clean_prompt, health_lines, marked
from promptbench.search import search
from promptbench.sst2 import TASK
from utils.errors import UserError
from utils.intervals import wilson_interval

SAMPLES = [Sample("fine {braces}", 1), Sample("bad", 0), Sample("good", 1), Sample("poor", 0)]
IDENTITY = {"backend": "test", "model_fingerprint": "f"}


class Reader:
    """An engine that answers by `answer(prompt)` and counts; it dies after some prompts if asked to."""

    def __init__(self, answer, dies_after=None):
        self.answer, self.dies_after = answer, dies_after
        self.asked, self.calls, self.closed = [], 0, 0

    def complete(self, prompts, sampling):
        assert sampling == SAMPLING
        self.calls += 1
        for done, position in enumerate(reversed(range(len(prompts)))):
            if done == self.dies_after:
                raise RuntimeError("the engine died")
            self.asked.append(prompts[position])
            yield position, self.answer(prompts[position])

    def close(self):
        self.closed += 1


def by_sample(prompt: str) -> str:
    return "positive" if "fine" in prompt or "good" in prompt else "It is negative."


@pytest.fixture
def accuracy(tmp_path):
    def make(engine, samples=SAMPLES, identity=IDENTITY):
        return PromptAccuracy(TASK, samples, tmp_path / "asked" / "rows.jsonl", identity, lambda: engine)

    return make


def test_all_missing_pairs_go_in_one_call_and_none_twice(accuracy):
    engine = Reader(lambda prompt: by_sample(prompt) if prompt.startswith("A") else "negative")
    with_engine = accuracy(engine)
    assert with_engine(["A {content}", "B {content}"]) == [1.0, 0.5]
    assert sorted(engine.asked) == sorted(f"{head} {s.text}" for head in "AB" for s in SAMPLES) and engine.calls == 1
    assert with_engine(["B {content}", "C {content}", "A {content}"]) == [0.5, 0.5, 1.0]
    assert (engine.calls, len(engine.asked)) == (2, 12)
    with_engine.close()
    assert engine.closed == 1


def test_what_a_killed_run_asked_is_not_asked_again(accuracy):
    dying = Reader(by_sample, dies_after=3)
    with pytest.raises(RuntimeError):
        accuracy(dying)(["A {content}"])
    engine = Reader(by_sample)
    assert accuracy(engine)(["A {content}"]) == [1.0]
    assert len(engine.asked) == 1 and set(engine.asked).isdisjoint(dying.asked)
    assert accuracy(None)(["A {content}"]) == [1.0], "an engine was opened though nothing was missing"


def test_a_half_written_line_is_asked_again_and_a_broken_one_is_named(accuracy, tmp_path):
    accuracy(Reader(by_sample))(["A {content}"])
    path = tmp_path / "asked" / "rows.jsonl"
    whole = path.read_text()
    path.write_text(whole[:-9])
    engine = Reader(by_sample)
    assert accuracy(engine)(["A {content}"]) == [1.0] and len(engine.asked) == 1
    for broken in ("no json", '{"prompt": "p", "sample": 4, "completion": "x"}', '{"prompt": "p", "sample": 0}'):
        path.write_text(broken + "\n" + whole)
        with pytest.raises(UserError, match="line 1 is broken"):
            accuracy(engine)


def test_completions_of_another_model_are_refused(accuracy):
    accuracy(Reader(by_sample))(["A {content}"])
    with pytest.raises(UserError, match="model fingerprint"):
        accuracy(Reader(by_sample), identity={**IDENTITY, "model_fingerprint": "g"})


@pytest.mark.parametrize("module", [stresstest, checklist, deepwordbug, semantic])
def test_a_model_that_ignores_the_prompt_has_no_drop_under_any_attack(module, accuracy):
    with_engine = accuracy(Reader(by_sample))
    result = search(module.open_attack(AttackParts(TASK)), TASK.prompt, TASK.protected_words, with_engine)
    report = attack_report("any", result, with_engine)
    assert report["performance_drop_rate"] == 0 and report["clean_accuracy"] == report["attacked_accuracy"] == 1
    assert report["attacked_accuracy_interval"] == list(wilson_interval(4, 4))
    json.dumps(report)


def test_stresstest_asks_four_prompts_over_all_samples_in_one_call(accuracy):
    engine = Reader(by_sample)
    with_engine = accuracy(engine)
    result = search(stresstest.open_attack(AttackParts(TASK)), TASK.prompt, TASK.protected_words, with_engine)
    assert (result.number_of_queries, engine.calls, len(engine.asked)) == (4, 1, 4 * len(SAMPLES))


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (lambda prompt: "", "of 4 answers: 4 empty, 4 without a readable answer; the first is ''"),
        (lambda prompt: "**positive**", "4 without a readable answer, 4 equal; the first is '**positive**'"),
        (lambda prompt: CutOff("neutral " * 99), "4 cut off at the token limit, 4 repeating the same text to the end"),
        (lambda prompt: "negative" if by_sample(prompt) == "positive" else "positive",
         "4 answers, all of them other labels; the first is 'negative'"),
    ],
)  # fmt: skip
def test_a_model_that_is_right_on_nothing_is_not_attacked(answer, why, accuracy):
    with pytest.raises(UserError, match="no answer to the clean prompt of sst2 is right") as refused:
        check_clean_prompt(TASK, "some/model", accuracy(Reader(answer)))
    assert why in str(refused.value) and "\n" not in str(refused.value)


def test_a_report_counts_the_faults_of_the_clean_and_the_attacked_answers(accuracy):
    def answer(prompt):
        return CutOff("hm") if "is true" in prompt or "is not true" in prompt else by_sample(prompt)

    with_engine = accuracy(Reader(answer))
    check_clean_prompt(TASK, "some/model", with_engine)
    result = search(stresstest.open_attack(AttackParts(TASK)), TASK.prompt, TASK.protected_words, with_engine)
    report = attack_report("stresstest", result, with_engine)
    assert report["clean_health"]["unreadable"] == report["clean_health"]["cut_off"] == 0
    assert report["attacked_health"]["unreadable"] == report["attacked_health"]["cut_off"] == 4
    assert health_lines([report]) == [
        "check the completions with stresstest's prompt: of 4 answers: 4 cut off at the token limit, "
        "4 without a readable answer, 4 equal"
    ]


def test_rows_without_word_of_the_limit_still_count(accuracy, tmp_path):
    accuracy(Reader(by_sample))(["A {content}"])
    path = tmp_path / "asked" / "rows.jsonl"
    path.write_text(path.read_text().replace(', "cut_off": false', ""))
    assert accuracy(None).health("A {content}").cut_off is None


def test_changed_words_are_marked():
    assert marked("one two three", [(0, 3), (8, 13)]) == "»one« two »three«"


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (5, 10, 0.2366, 0.7634), (81, 263, 0.2553, 0.3662)],
)
def test_intervals_are_wilsons(successes, trials, low, high):
    assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=5e-5)
