"""Formats of prompts: recorded with every result, never mixed, and on real weights as the model's template says."""

import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from inference_llms.engines.chat_templates import tokens_of_chats
from inference_llms.engines.engine import Chat
from inference_llms.prompt_format import PAPER_PROMPTS, PromptFormat, prompt_format_on_record
from inference_llms.tasks import TASKS
from tests.inference_llms.support import OWN_DATA, ZOO, read_json_lines, run_command_here, write_rows
from tests.smollm2 import needs_smollm2, write_smollm2

CHAT = PromptFormat("chat", "be brief", thinking=False)
TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}"


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("The answer is: 4", "The answer is: 4"),
        ("<think>\n3 or 5?\n</think>\n\nThe answer is: 4", "The answer is: 4"),
        ("3 or 5?</think>The answer is: 4", "The answer is: 4"),  # the template opened the thinking
        ("<think>\n3 or 5, The answer is: 5", ""),
    ],
)
def test_only_the_text_after_the_thinking_counts_in_a_chat(completion, answer):
    assert CHAT.answer(completion) == answer
    assert PAPER_PROMPTS.answer(completion) == PromptFormat("plain").answer(completion) == completion


@pytest.mark.parametrize("form", [PAPER_PROMPTS, PromptFormat("plain"), CHAT])
def test_a_format_is_read_back_from_a_record(form):
    assert prompt_format_on_record(json.loads(json.dumps(form.on_record()))) == form


@pytest.mark.parametrize("name", TASKS)
def test_every_task_has_a_question_without_the_papers_words_and_stops(name):
    paper, chat = TASKS[name].in_format(PAPER_PROMPTS), TASKS[name].in_format(CHAT)
    before, after = paper.load_examples(OWN_DATA), chat.load_examples(OWN_DATA)
    assert [example.id for example in before] == [example.id for example in after]
    for example in after:
        assert "### Response" not in example.prompt and "ASSISTANT" not in example.prompt
    assert chat.sampling.stop == () and paper.sampling == TASKS[name].sampling
    assert chat.prompts(after)[0] == Chat(after[0].prompt, "be brief", False)
    assert paper.prompts(before)[0] == before[0].prompt


@pytest.fixture
def model(tmp_path):
    """A tiny model with a chat template."""
    folder = shutil.copytree(ZOO / "math", tmp_path / "chat-model")
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


def test_results_of_another_format_are_refused_and_kept(model, tmp_path):
    def run(*options):
        where = ("--output_dir", tmp_path / "out", "--data_dir", ZOO / "data", "--end_index", 2, "--max_tokens", 8)
        return run_command_here("--load_model_path", model, "--tasks", "gsm8k", *where, *options)

    chat = run("--prompt_format", "chat")
    assert chat.returncode == 0, chat.stderr
    scores = tmp_path / "out/save_scores/single_model/chat-model.json"
    recorded = json.loads(scores.read_text())["gsm8k"]
    form = {"name": "chat", "system_prompt": None, "thinking": None}
    assert recorded["prompt_format"] == "chat" and recorded["identity"]["prompt_format"] == form
    assert recorded["options"]["prompt_format"] == "chat"
    for options in ([], ["--prompt_format", "plain"], ["--prompt_format", "chat", "--system_prompt", "be brief"]):
        other = run(*options)
        assert other.returncode == 2 and "another prompt format" in other.stderr
        assert json.loads(scores.read_text())["gsm8k"] == recorded
    replayed = run(
        "--backend", "replay", "--replay_from", tmp_path / "out/save_raw_generations/single_model/chat-model"
    )
    assert replayed.returncode == 2


def test_tokens_of_answers_are_counted(model, tmp_path):
    where = ("--output_dir", tmp_path, "--data_dir", ZOO / "data", "--end_index", 3, "--max_tokens", 5)
    assert run_command_here("--load_model_path", model, "--tasks", "gsm8k", *where).returncode == 0
    rows = read_json_lines(tmp_path / "save_raw_generations/single_model/chat-model/gsm8k.jsonl")
    tokenizer = AutoTokenizer.from_pretrained(model)
    for row in rows:
        in_text = len(tokenizer(row["completion"], add_special_tokens=False)["input_ids"])
        assert in_text <= row["tokens"] <= 5 and (row["tokens"] == 5 or not row["cut_off"])
    score = json.loads((tmp_path / "save_scores/single_model/chat-model.json").read_text())["gsm8k"]
    assert score["tokens_per_answer"] == sum(row["tokens"] for row in rows) / 3


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--thinking", "on"], "--thinking has no effect with --prompt_format paper; add --prompt_format chat"),
        (
            ["--prompt_format", "plain", "--system_prompt", "a"],
            "--system_prompt has no effect with --prompt_format",
        ),
        (
            ["--prompt_format", "chat"],
            "base: its tokenizer has no chat template; choose --prompt_format",
        ),
    ],
)
def test_options_without_effect_and_models_without_template_are_refused(options, reason, tmp_path):
    refused = run_command_here(
        "--load_model_path", ZOO / "base", "--tasks", "gsm8k", "--data_dir", ZOO / "data", "--output_dir", tmp_path,
        *options,
    )  # fmt: skip
    assert refused.returncode == 2 and reason in refused.stderr and refused.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_few_prompts_are_shown_as_the_model_gets_them(model, tmp_path):
    shown = run_command_here(
        "--load_model_path", model, "--show", "gsm8k", "--prompt_format", "chat", "--data_dir", OWN_DATA
    )
    row = read_json_lines(OWN_DATA / "gsm8k_test.jsonl")[0]
    assert shown.returncode == 0 and "gsm8k: 3 of 3 prompts, format chat" in shown.stdout
    assert f"<s>{row['question']}" in shown.stdout and "an answer ends at the model's own end tokens" in shown.stdout


@pytest.mark.parametrize("thinking", ["on", "off"])
def test_an_answer_cut_off_in_thinking_that_the_template_began_is_empty(thinking, model, tmp_path):
    begins = "{% if not enable_thinking %}\n</think>\n{% endif %}"
    (model / "chat_template.jinja").write_text(f"{TEMPLATE}<think>\n{begins}")
    options = ("--prompt_format", "chat", "--thinking", thinking, "--output_dir", tmp_path, "--max_tokens", 5)
    done = run_command_here(
        "--load_model_path", model, "--tasks", "alpaca_eval", "--data_dir", ZOO / "data", "--end_index", 3, *options
    )
    assert done.returncode == 0, done.stderr
    score = json.loads((tmp_path / "save_scores/single_model/chat-model.json").read_text())["alpaca_eval"]
    outputs = json.loads(Path(score["files"][0]).read_text())
    assert any(row["output"] for row in outputs) == (thinking == "off")
    assert score["health"]["empty"] == sum(row["output"] == "" for row in outputs)


@needs_smollm2
def test_a_real_chat_model_gets_its_own_template_and_stops(tmp_path):
    folder = write_smollm2(tmp_path / "smollm2")
    questions = ["What is the capital of France?", "Say hello."]
    write_rows(tmp_path / "data/alpaca_eval.json", [])
    (tmp_path / "data/alpaca_eval.json").write_text(
        json.dumps([{"instruction": question, "output": "", "dataset": "own"} for question in questions])
    )
    system = "Answer in one short sentence."
    done = run_command_here(
        "--load_model_path", folder, "--tasks", "alpaca_eval", "--data_dir", tmp_path / "data", "--max_tokens", 120,
        "--output_dir", tmp_path / "out", "--prompt_format", "chat", "--system_prompt", system,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = read_json_lines(tmp_path / "out/save_raw_generations/single_model/smollm2/alpaca_eval.jsonl")
    assert [row["cut_off"] for row in rows] == [False, False]
    assert "Paris" in next(row["completion"] for row in rows if row["id"] == 0)
    assert not any("<|im_end|>" in row["completion"] for row in rows)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for question in questions:
        messages = [{"role": "system", "content": system}, {"role": "user", "content": question}]
        expected = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        assert tokens_of_chats(tokenizer, [Chat(question, system)]) == [expected]
        assert tokenizer.decode(expected).startswith(f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user")
