"""The transformers engine on a million random parameters, compared with transformers' own `generate`."""

import inspect
import json
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from inference_llms.engines import decoding_batch
from inference_llms.engines import transformers as transformers_engine
from inference_llms.engines.engine import Sampling
from inference_llms.engines.open_engine import open_engine
from inference_llms.engines.transformers import cut_at_stop
from tests.inference_llms.engines.tiny_llama import BEGIN, CONTEXT, CUT, END, PROMPTS, write_tiny_llama


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_llama(tmp_path_factory.mktemp("tiny_llama"))


@pytest.fixture(scope="module")
def engine(folder):
    engine = open_engine("transformers", folder, 1, 1)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def tokenizer(folder):
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def model(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype="float32")


@pytest.fixture(scope="module")
def greedy_tokens(model, tokenizer):
    """The greedy tokens of some prompts, each generated alone."""
    inputs = [tokenizer(prompt, return_tensors="pt") for prompt in PROMPTS[:12]]
    assert {int(of["input_ids"][0, 0]) for of in inputs} == {BEGIN}, "special tokens are part of the prompt"
    generated = [model.generate(**of, max_new_tokens=24, do_sample=False, pad_token_id=END)[0] for of in inputs]
    return [new[of["input_ids"].shape[1] :].tolist() for of, new in zip(inputs, generated, strict=True)]


def complete(engine, prompts, **sampling):
    completions = dict(engine.complete(prompts, Sampling(**sampling)))
    assert sorted(completions) == list(range(len(prompts)))
    return [completions[position] for position in range(len(prompts))]


@pytest.mark.parametrize("max_tokens", [1, 2, 9, 24])
def test_greedy_completions_equal_those_of_generate(engine, tokenizer, greedy_tokens, max_tokens):
    texts = [tokenizer.decode(new[:max_tokens], skip_special_tokens=True) for new in greedy_tokens]
    completions = complete(engine, PROMPTS[:12], max_tokens=max_tokens)
    assert completions == [text.rstrip("\ufffd") for text in texts]
    is_cut_off = [not {END, CUT} & set(new[:max_tokens]) for new in greedy_tokens]
    assert [text.cut_off for text in completions] == is_cut_off


def test_a_completion_that_an_end_token_ends_is_not_cut_off(engine, tokenizer, greedy_tokens, monkeypatch):
    assert engine._end_tokens == {END, CUT}
    frequent = greedy_tokens[0][3]
    monkeypatch.setattr(engine, "_end_tokens", {END, CUT, frequent})
    before = greedy_tokens[0][: greedy_tokens[0].index(frequent)]
    for max_tokens in (4, 24):
        (completion,) = complete(engine, PROMPTS[:1], max_tokens=max_tokens)
        assert completion == tokenizer.decode(before, skip_special_tokens=True)
        assert not completion.cut_off


@pytest.fixture(scope="module")
def alone(engine):
    """Completions of prompts that run one by one; the last seven prompts begin alike."""
    prompts = [*PROMPTS[:12], *(PROMPTS[0] + prompt for prompt in PROMPTS[:6]), PROMPTS[0]]
    return {prompt: complete(engine, [prompt], max_tokens=40, stop=("re",))[0] for prompt in prompts}


@pytest.mark.parametrize(
    ("module", "name", "value"),
    [
        (transformers_engine, "MAX_ROWS", 256),
        (transformers_engine, "MAX_ROWS", 5),
        (decoding_batch, "TOKENS_AT_ONCE", 1),
        (decoding_batch, "TOKENS_AT_ONCE", 40),
    ],
)
def test_a_completion_does_not_depend_on_the_prompts_beside_it(engine, monkeypatch, alone, module, name, value):
    """Also when rows join a running batch, when prompts run in pieces, and when they begin alike."""
    monkeypatch.setattr(module, name, value)
    for prompts in (list(alone), list(alone)[-7:]):
        assert complete(engine, prompts, max_tokens=40, stop=("re",)) == [alone[prompt] for prompt in prompts]


def test_the_common_beginning_of_all_prompts_runs_once(engine):
    tokens = []
    counting = engine._model.register_forward_hook(
        lambda model, inputs, named, output: tokens.append(named["input_ids"].numel()), with_kwargs=True
    )
    prompts = [PROMPTS[0] + ending for ending in ("a", "b", "c", "d")]
    complete(engine, prompts, max_tokens=1)
    counting.remove()
    assert sum(tokens) < sum(map(len, engine.tokenizer(prompts)["input_ids"])) / 2


def test_either_name_of_the_cache_argument_works(engine, monkeypatch):
    """transformers renames the argument in 5.24, and drops the old name in 5.40."""
    expected = complete(engine, PROMPTS[:4], max_tokens=8)
    forward = engine._model.forward
    present = "cache" if "cache" in inspect.signature(forward).parameters else "past_key_values"

    def with_cache(input_ids, cache, **options):
        return forward(input_ids=input_ids, **{present: cache}, **options)

    def with_past_key_values(input_ids, past_key_values, **options):
        return forward(input_ids=input_ids, **{present: past_key_values}, **options)

    for renamed in (with_cache, with_past_key_values):
        monkeypatch.setattr(engine._model, "forward", renamed)
        assert complete(engine, PROMPTS[:4], max_tokens=8) == expected


def test_transformers_prints_no_warning(engine, capfd):
    verbosity = logging.get_verbosity()
    logging.set_verbosity_info()
    try:
        complete(engine, PROMPTS[:4], max_tokens=8)
    finally:
        logging.set_verbosity(verbosity)
    assert capfd.readouterr() == ("", "")


def test_completions_come_as_they_end(engine):
    """The first comes long before the longest ends, and a caller that stops early leaves nothing behind."""
    expected = complete(engine, PROMPTS[:4], max_tokens=3)
    runs = []
    counting = engine._model.register_forward_hook(lambda *_: runs.append(1))
    listening = engine.complete(PROMPTS, Sampling(max_tokens=200, stop=("e",)))
    threads = torch.get_num_threads()
    next(listening)
    assert len(runs) < 100
    assert torch.get_num_threads() == threads
    assert not torch.is_inference_mode_enabled()
    listening.close()
    counting.remove()
    assert complete(engine, PROMPTS[:4], max_tokens=3) == expected


def test_a_completion_ends_before_its_first_stop(engine):
    whole = complete(engine, PROMPTS, max_tokens=60)
    stops = ("re", "a", "zz")
    stopped = complete(engine, PROMPTS, max_tokens=60, stop=stops)
    assert len(set(stopped) - set(whole)) > len(PROMPTS) / 2
    for text, cut in zip(whole, stopped, strict=True):
        assert cut == text[: min([text.find(stop) for stop in stops if stop in text] + [len(text)])]
        assert not (cut != text and cut.cut_off)


def test_the_stop_that_ends_first_counts():
    assert cut_at_stop("so Instruction: go", ("Instruction:", "Instruction")) == "so "
    assert cut_at_stop("abcd", ("abcd", "bc")) == "a"
    assert cut_at_stop("nothing here", ("Response",)) == "nothing here"
    assert cut_at_stop("", ("Response",)) == ""


def test_a_prompt_near_the_context_limit_gets_the_remaining_room(engine, tokenizer, capsys):
    fits, full, too_long = (" a" * count for count in (CONTEXT - 3, CONTEXT - 1, 2 * CONTEXT))
    assert [len(tokenizer(text)["input_ids"]) for text in (fits, full)] == [CONTEXT - 2, CONTEXT]
    completions = complete(engine, [full, fits, too_long, PROMPTS[0]], max_tokens=100)
    assert completions[0] == completions[2] == ""
    assert 0 < len(tokenizer(completions[1], add_special_tokens=False)["input_ids"]) <= 2
    assert all(completion.cut_off for completion in completions[:3])
    assert completions[3] == complete(engine, PROMPTS[:1], max_tokens=100)[0]
    notices = capsys.readouterr().err.strip().splitlines()
    assert notices == [f"2 of 4 prompts fill the model's context of {CONTEXT} tokens; they get empty completions"]
    assert complete(engine, [], max_tokens=5) == []


def test_an_end_token_that_the_tokenizer_appends_changes_no_completion(engine, folder, tmp_path, capsys):
    """As with `add_eos_token`, which training frameworks leave on."""
    appending = shutil.copytree(folder, tmp_path / "appending")
    content = json.loads((appending / "tokenizer.json").read_text())
    content["post_processor"]["single"].append({"SpecialToken": {"id": "</s>", "type_id": 0}})
    content["post_processor"]["special_tokens"]["</s>"] = {"id": "</s>", "ids": [END], "tokens": ["</s>"]}
    (appending / "tokenizer.json").write_text(json.dumps(content))
    assert AutoTokenizer.from_pretrained(appending)(PROMPTS[0])["input_ids"][-1] == END
    prompts = [*PROMPTS[:4], "ends itself</s>"]
    other = open_engine("transformers", appending, 1, 1)
    assert complete(other, prompts, max_tokens=20) == complete(engine, prompts, max_tokens=20)
    other.close()
    assert "the tokenizer adds </s> to the end of every prompt" in capsys.readouterr().out


def test_a_new_tokenizer_brings_the_stop_tokens_of_its_folder(engine, folder, tmp_path):
    other = shutil.copytree(folder, tmp_path / "other")
    (other / "generation_config.json").write_text(json.dumps({"eos_token_id": 40}))
    changed, plain = open_engine("transformers", folder, 1, 1), open_engine("transformers", other, 1, 1)
    changed.take_tokenizer(other)
    completions = complete(changed, PROMPTS[:12], max_tokens=40)
    assert completions == complete(plain, PROMPTS[:12], max_tokens=40)
    assert completions != complete(engine, PROMPTS[:12], max_tokens=40)


def test_drawn_completions_repeat_and_follow_the_temperature(engine):
    drawn = complete(engine, PROMPTS, max_tokens=20, temperature=5.0)
    assert drawn == complete(engine, PROMPTS, max_tokens=20, temperature=5.0)
    greedy = complete(engine, PROMPTS, max_tokens=20)
    assert drawn != greedy
    assert complete(engine, PROMPTS, max_tokens=20, temperature=5.0, top_p=1e-6) == greedy
    assert complete(engine, PROMPTS, max_tokens=20, temperature=1e-4) == greedy


def test_first_tokens_are_drawn_with_the_models_probabilities(engine, model, tokenizer):
    """2,000 draws after one prompt: the likeliest token's share is its probability within four standard errors."""
    with torch.inference_mode():
        logits = model(torch.tensor([tokenizer(PROMPTS[0])["input_ids"]])).logits[0, -1]
    probability, token = (value.item() for value in torch.softmax(logits / 3.0, -1).max(-1))
    drawn = complete(engine, PROMPTS[:1] * 2000, max_tokens=1, temperature=3.0)
    share = drawn.count(tokenizer.decode([token])) / len(drawn)
    assert abs(share - probability) < 4 * (probability * (1 - probability) / len(drawn)) ** 0.5


@pytest.mark.skipif(torch.cuda.device_count() > 0, reason="a GPU runs them as they are")
def test_half_precision_checkpoints_run_in_float32_on_the_cpu(tmp_path):
    half = open_engine("transformers", write_tiny_llama(tmp_path / "half", torch.bfloat16), 1, 1)
    assert {parameter.dtype for parameter in half._model.parameters()} == {torch.float32}
    assert len(complete(half, PROMPTS[:3], max_tokens=5)) == 3
