"""Accuracies with prompts, whose pairs are completed once, stored and reused; and reports of attacks."""

import json

import pytest

from inference_llms.engines.engine import Completion
from promptbench.attack import AttackParts
from promptbench.attacks import stresstest
from promptbench.prompt_accuracy import SAMPLING, PromptAccuracy
from promptbench.prompt_task import Sample
from promptbench.report import attack_report, health_lines, marked, why_no_drop_rate
from promptbench.search import search
from promptbench.sst2 import TASK
from tests.inference_llms.support import MadeUpEngine
from utils.errors import UserError

SAMPLES = [Sample("fine {braces}", 1), Sample("bad", 0), Sample("good", 1), Sample("poor", 0)]
IDENTITY = {"backend": "test", "model_fingerprint": "f"}


def by_sample(prompt: str) -> str:
    return "positive" if "fine" in prompt or "good" in prompt else "It is negative."


@pytest.fixture
def accuracy(tmp_path):
    def make(engine, samples=SAMPLES, identity=IDENTITY):
        return PromptAccuracy(TASK, samples, tmp_path / "stored" / "rows.jsonl", identity, lambda: engine)

    return make


def attack(accuracy: PromptAccuracy):
    attack = stresstest.open_attack(AttackParts(TASK))
    return search(attack, TASK.prompt, TASK.protected_words, accuracy)


def test_missing_pairs_are_completed_in_one_call_and_none_twice(accuracy):
    engine = MadeUpEngine(lambda prompt: by_sample(prompt) if prompt.startswith("A") else "negative")
    with_engine = accuracy(engine)
    assert with_engine(["A {content}", "B {content}"]) == [1.0, 0.5]
    assert sorted(engine.prompts) == sorted(f"{head} {s.text}" for head in "AB" for s in SAMPLES) and engine.calls == 1
    assert with_engine(["B {content}", "C {content}", "A {content}"]) == [0.5, 0.5, 1.0]
    assert (engine.calls, len(engine.prompts), engine.sampling) == (2, 12, SAMPLING)
    with_engine.close()
    assert engine.closed == 1


def test_completions_of_a_killed_run_are_reused(accuracy):
    dying = MadeUpEngine(by_sample, dies_after=3)
    with pytest.raises(RuntimeError):
        accuracy(dying)(["A {content}"])
    engine = MadeUpEngine(by_sample)
    assert accuracy(engine)(["A {content}"]) == [1.0]
    assert len(engine.prompts) == 1 and set(engine.prompts).isdisjoint(dying.prompts)
    assert accuracy(None)(["A {content}"]) == [1.0], "an engine was opened although nothing was missing"


def test_a_half_written_row_is_completed_again_and_a_broken_one_named(accuracy, tmp_path):
    accuracy(MadeUpEngine(by_sample))(["A {content}"])
    path = tmp_path / "stored" / "rows.jsonl"
    whole = path.read_text()
    path.write_text(whole[:-9])
    engine = MadeUpEngine(by_sample)
    assert accuracy(engine)(["A {content}"]) == [1.0] and len(engine.prompts) == 1
    for broken in ("no json", '{"prompt": "p", "sample": 4, "completion": "x"}', '{"prompt": "p", "sample": 0}'):
        path.write_text(broken + "\n" + whole)
        with pytest.raises(UserError, match="line 1 is broken"):
            accuracy(engine)


def test_completions_of_another_model_are_refused(accuracy):
    accuracy(MadeUpEngine(by_sample))(["A {content}"])
    with pytest.raises(UserError, match="model fingerprint"):
        accuracy(MadeUpEngine(by_sample), identity={**IDENTITY, "model_fingerprint": "g"})


def test_an_attack_that_lowers_nothing_has_a_drop_rate_of_0(accuracy):
    engine = MadeUpEngine(by_sample)
    with_engine = accuracy(engine)
    result = attack(with_engine)
    assert (result.number_of_queries, engine.calls, len(engine.prompts)) == (4, 1, 4 * len(SAMPLES))
    report = attack_report("any", result, with_engine)
    assert report["performance_drop_rate"] == 0 and report["clean_accuracy"] == report["attacked_accuracy"] == 1
    assert report["attacked_accuracy_interval"] == pytest.approx([0.5101, 1], abs=1e-4)  # Wilson, 4 of 4
    json.dumps(report)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda prompt: "", "of 4 answers: 4 empty, 4 without a readable answer; the first is ''"),
        (lambda prompt: "**positive**", "4 without a readable answer, 4 equal; the first is '**positive**'"),
        (
            lambda prompt: Completion("neutral " * 99, 99, cut_off=True),
            "4 cut off at the token limit, 4 repeating the same text to the end",
        ),
        (lambda prompt: "negative" if by_sample(prompt) == "positive" else "positive",
         "4 answers, all with the wrong label; the first is 'negative'"),
    ],
)  # fmt: skip
def test_the_answers_of_a_model_that_is_never_right_are_described(answer, reason, accuracy):
    line = why_no_drop_rate(TASK, "some/model", accuracy(MadeUpEngine(answer)))
    assert "no answer to the clean prompt of sst2 is right" in line and reason in line and "\n" not in line


def test_a_report_counts_faults_of_clean_and_attacked_answers(accuracy):
    def answer(prompt):
        return (
            Completion("hm", 1, cut_off=True) if "is true" in prompt or "is not true" in prompt else by_sample(prompt)
        )

    with_engine = accuracy(MadeUpEngine(answer))
    assert why_no_drop_rate(TASK, "some/model", with_engine) is None
    report = attack_report("stresstest", attack(with_engine), with_engine)
    assert report["clean_health"]["unreadable"] == report["clean_health"]["cut_off"] == 0
    assert report["attacked_health"]["unreadable"] == report["attacked_health"]["cut_off"] == 4
    assert health_lines([report]) == [
        "check the completions with stresstest's prompt: of 4 answers: 4 cut off at the token limit, "
        "4 without a readable answer, 4 equal"
    ]


def test_rows_that_do_not_say_whether_they_were_cut_off_still_count(accuracy, tmp_path):
    accuracy(MadeUpEngine(by_sample))(["A {content}"])
    path = tmp_path / "stored" / "rows.jsonl"
    path.write_text(path.read_text().replace(', "cut_off": false', ""))
    assert accuracy(None).health("A {content}").cut_off is None


def test_changed_words_are_marked():
    assert marked("one two three", [(0, 3), (8, 13)]) == "»one« two »three«"
