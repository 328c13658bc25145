"""Attacked tasks from the command line, on the tiny model that classifies."""

import functools
import importlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from promptbench import attacks, run_attacks, sst2
from promptbench.prompt_task import PromptTask, Sample
from promptbench.prompt_words import PromptWords
from tests.commands import run_here
from tests.inference_llms.support import ROOT, ZOO
from tests.promptbench.attack_parts import ENCODER, word_piece_tokenizer, write_mask_lm, write_vectors
from tests.vllm_marks import two_workers, vllm_installed
from utils.whole_files import locked

CLASSIFIER = ZOO / "classify"
TWENTY = ("--num_samples", 20, "--query_budget", 30)


def words(out: Path, *options: object) -> list[object]:
    common = ["--model_path", CLASSIFIER, "--data_dir", ZOO / "data", "--output_dir", out]
    if "--backend" not in options:
        common += ["--backend", "transformers"]
    return [*common, *options]


def run(script: str, out: Path, *options: object, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    """Run a script from the folder `cwd`."""
    command = [sys.executable, ROOT / "promptbench" / script, *words(out, *options)]
    return subprocess.run([str(word) for word in command], cwd=cwd, capture_output=True, text=True, check=False)


def attack(task: PromptTask, out: Path, *options: object) -> subprocess.CompletedProcess:
    """Run the same in this process."""
    return run_here(functools.partial(run_attacks.main, task), words(out, *options))


def results(out: Path, dataset: str) -> dict[str, dict]:
    folder = out / "save_adversarial_results" / dataset / "classify"
    return {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}


def is_one_line(done: subprocess.CompletedProcess) -> bool:
    return done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


@pytest.fixture(scope="module")
def attacked(tmp_path_factory) -> Path:
    """Two attacks on both tasks, run from another folder."""
    out = tmp_path_factory.mktemp("attacked")
    for script in ("sst2.py", "cola.py"):
        done = run(script, out, "--attack_method", "stresstest", "deepwordbug", *TWENTY, cwd=out)
        assert done.returncode == 0, done.stderr
        assert "»" in done.stdout and "PDR" in done.stdout and str(out) in done.stdout
    return out


@pytest.mark.parametrize("dataset", ["sst2", "cola"])
def test_results_have_prompts_accuracies_intervals_queries_and_options(attacked, dataset):
    found = results(attacked, dataset)
    assert found.keys() == {"stresstest", "deepwordbug"}
    assert found["stresstest"]["clean_accuracy"] >= 0.75, "the tiny model classifies well above chance"
    assert found["stresstest"]["number_of_queries"] == 4 and found["deepwordbug"]["number_of_queries"] <= 30
    for result in found.values():
        low, high = result["attacked_accuracy_interval"]
        assert low <= result["attacked_accuracy"] <= high
        drop = (result["clean_accuracy"] - result["attacked_accuracy"]) / result["clean_accuracy"]
        assert result["performance_drop_rate"] == pytest.approx(drop)
        assert result["settings"]["number_of_samples"] == 20 and result["settings"]["seed"] == 0
        assert result["options"]["attack_method"] == ["stresstest", "deepwordbug"]
        assert result["options"]["model_path"] == str(CLASSIFIER) and result["options"]["query_budget"] == 30
        assert result["attacked_prompt_marked"].replace("»", "").replace("«", "") == result["attacked_prompt"]


def test_a_model_without_a_right_answer_has_a_result_without_a_drop_rate(tmp_path):
    options = ("--model_path", ZOO / "math", "--attack_method", "stresstest", "deepwordbug", *TWENTY)
    for _ in range(2):  # a second run finds the same result
        done = attack(sst2.TASK, tmp_path, *options)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("no answer to the clean prompt of sst2 is right") == 1 and "undefined" in done.stdout
    reports = [json.loads(path.read_text()) for path in tmp_path.rglob("save_adversarial_results/sst2/math/*.json")]
    assert [(report["performance_drop_rate"], report["clean_accuracy"]) for report in reports] == [(None, 0)] * 2


def test_a_second_run_generates_nothing_and_finds_the_same(attacked):
    rows = {path: path.read_bytes() for path in attacked.rglob("*.jsonl")}
    before = results(attacked, "sst2")
    done = attack(sst2.TASK, attacked, "--attack_method", "stresstest", *TWENTY)
    assert done.returncode == 0, done.stderr
    after = results(attacked, "sst2")
    for name in before:
        assert {**after[name], "command": "", "options": {}} == {**before[name], "command": "", "options": {}}
    assert rows == {path: path.read_bytes() for path in attacked.rglob("*.jsonl")}


def test_a_result_with_other_settings_is_not_overwritten(attacked):
    before = results(attacked, "sst2")
    done = attack(sst2.TASK, attacked, "--attack_method", "stresstest", "--num_samples", 20, "--seed", 1)
    assert is_one_line(done)
    assert "another samples and seed and query budget" in done.stderr and "stresstest.json" in done.stderr
    assert results(attacked, "sst2") == before


@pytest.mark.parametrize("held", ["save_raw_generations/**/*.jsonl", "save_adversarial_results/**/stresstest.json"])
def test_simultaneous_attacks_on_one_result_are_refused(attacked, held):
    path = next(path for path in attacked.glob(held) if "sst2" in str(path))
    before = {path: path.stat().st_mtime_ns for path in attacked.rglob("*") if path.is_file()}
    with locked(path):
        done = attack(sst2.TASK, attacked, "--attack_method", "stresstest", *TWENTY)
    assert is_one_line(done) and done.stderr.startswith(f"error: {path}: another process")
    assert {path: path.stat().st_mtime_ns for path in attacked.rglob("*") if path.is_file()} == before


def test_all_runs_the_attacks_with_available_parts_and_lists_the_rest(tmp_path):
    task = replace(sst2.TASK, paraphrases=())
    done = attack(task, tmp_path, "--attack_method", "all", "--num_samples", 4, "--query_budget", 6,
               "--mask_lm", tmp_path / "none", "--sentence_encoder", tmp_path / "none")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert results(tmp_path, "sst2").keys() == {"stresstest", "checklist", "deepwordbug"}
    not_run = [line.split(": ", 2)[1:] for line in done.stdout.splitlines() if line.startswith("not run: ")]
    assert [name for name, _ in not_run] == ["bertattack", "semantic", "textbugger", "textfooler"]
    assert [why.split()[0] for _, why in not_run] == ["--mask_lm", "the", "--word_vectors", "--word_vectors"]


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> list[object]:
    """Options for all parts of attacks, which know two words near every word of the task's prompt."""
    folder = tmp_path_factory.mktemp("parts")
    words = [word for word in PromptWords.of(sst2.TASK.prompt.lower()).words if word.isalpha()]
    pieces = list(dict.fromkeys([*words, "decide", "find"]))
    mask_lm = write_mask_lm(folder / "mask_lm", word_piece_tokenizer(pieces), {w: ["decide", "find"] for w in words})
    vectors = {word: [float(number == i) for i in range(len(pieces))] for number, word in enumerate(pieces)}
    near = {"decide": vectors["determine"], "find": vectors["respond"], "answer": vectors["respond"]}
    vector_file = write_vectors(folder / "vectors.txt", {**vectors, **near})
    return ["--mask_lm", mask_lm, "--sentence_encoder", ENCODER, "--word_vectors", vector_file]


def test_all_runs_every_attack_if_all_parts_are_available(parts, tmp_path):
    options = ("--num_samples", 4, "--query_budget", 25)
    done = attack(sst2.TASK, tmp_path, "--attack_method", "all", *options, *parts)
    assert done.returncode == 0 and "not run" not in done.stdout, done.stderr
    found = results(tmp_path, "sst2")
    assert set(found) == set(run_attacks.ATTACK_NAMES) and len(found) == 7
    assert all([step["candidates"] for step in result["steps"] if step["candidates"]] for result in found.values())
    settings = {name: found[name]["settings"] for name in found}
    assert settings["bertattack"]["mask_lm"] == str(parts[1]) and "word_vectors" not in settings["bertattack"]
    assert settings["textfooler"]["word_vectors"] == str(parts[5]) and "mask_lm" not in settings["textfooler"]

    other = write_vectors(tmp_path / "other.txt", {"determine": [1, 0], "decide": [1, 0]})
    done = attack(sst2.TASK, tmp_path, "--attack_method", "textfooler", *options, *parts[:-1], other)
    assert is_one_line(done) and "another word vectors" in done.stderr
    assert results(tmp_path, "sst2") == found


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--attack_method", "nonsense"], "nonsense"),
        (["--attack_method", "stresstest", "--model_path", "nowhere"], "nowhere"),
        (["--attack_method", "stresstest", "--num_samples", 5000], "--num_samples 5000"),
        (["--attack_method", "stresstest", "--query_budget", 0], "--query_budget"),
        (["--attack_method", "stresstest", "--data_dir", "nowhere"], "--data_dir nowhere"),
        (["--attack_method", "bertattack", "--mask_lm", "nowhere"], "--mask_lm"),
        (["--attack_method", "textfooler"], "--word_vectors"),
        (["--attack_method", "all", "--word_vectors", ROOT / "README.md"], "README.md line 1"),
        (["--attack_method", "all", "--mask_lm", CLASSIFIER], "--mask_lm"),
        ([], "--attack_method"),
    ],
)
def test_a_mistake_is_reported_in_one_line_and_leaves_nothing(options, message, tmp_path):
    done = attack(sst2.TASK, tmp_path / "out", *options)
    assert is_one_line(done) and message in done.stderr
    assert not (tmp_path / "out").exists()


FILMS = PromptTask(
    name="films",
    prompt="Text:{content}\nPlease respond with 'positive' or 'negative'.",
    labels={"positive": 1, "negative": 0},
    paraphrases=("Is it 'positive' or 'negative'? {content}",),
    load_samples=lambda data_dir: [Sample("a wonderful film", 1), Sample("a dull film", 0)],
)


def test_another_data_set_is_one_task(tmp_path):
    done = attack(FILMS, tmp_path, "--attack_method", "semantic")
    assert done.returncode == 0, done.stderr
    assert results(tmp_path, "films")["semantic"]["number_of_queries"] == 2


@pytest.mark.parametrize("wrong", [{"prompt": "Text:"}, {"paraphrases": ("{content} and {content}",)}])
def test_prompts_and_paraphrases_must_contain_the_placeholder_once(wrong, tmp_path):
    done = attack(replace(FILMS, **wrong), tmp_path / "out", "--attack_method", "stresstest")
    assert is_one_line(done) and "{content} once" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_new_attack_is_one_file(tmp_path, monkeypatch):
    (tmp_path / "shout.py").write_text(
        "from promptbench.attack import WholePromptAttack\n\n\n"
        "def open_attack(parts):\n"
        '    return WholePromptAttack(lambda clean: [clean.text + "!"])\n'
    )
    monkeypatch.setattr(attacks, "__path__", [*attacks.__path__, str(tmp_path)])
    reloaded = importlib.reload(run_attacks)
    assert "shout" in reloaded.ATTACK_NAMES
    out = tmp_path / "out"
    reloaded.main(sst2.TASK, [str(word) for word in words(out, "--attack_method", "shout", "--num_samples", 2)])
    assert results(out, "sst2")["shout"]["attacked_prompt"].endswith("'.!")


def test_a_cap_on_completions_is_in_the_settings(tmp_path):
    options = ("--attack_method", "stresstest", "--num_samples", 8, "--max_tokens", 5)
    done = attack(sst2.TASK, tmp_path, *options)
    assert done.returncode == 0, done.stderr
    assert results(tmp_path, "sst2")["stresstest"]["settings"]["sampling"]["max_tokens"] == 5
    done = attack(sst2.TASK, tmp_path, *options[:-1], 6)
    assert is_one_line(done) and "another sampling" in done.stderr


@pytest.mark.vllm
@vllm_installed
@two_workers
def test_vllm_with_two_workers_finds_the_same_as_transformers(tmp_path):
    found = {}
    for backend in ("transformers", "vllm"):
        options = ("--attack_method", "stresstest", "--num_samples", 40, "--tensor_parallel_size", 2)
        done = run("sst2.py", tmp_path / backend, *options, "--backend", backend)
        assert done.returncode == 0, done.stderr
        found[backend] = results(tmp_path / backend, "sst2")["stresstest"]
    for name in ("clean_accuracy", "attacked_accuracy", "attacked_prompt"):
        assert found["vllm"][name] == found["transformers"][name]
