"""The transformers engine, on a million random parameters, against plain decoding by hand."""

import inspect
import json
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from inference_llms.engines import decoding_batch
from inference_llms.engines import transformers as transformers_engine
from inference_llms.engines.engine import CutOff, Sampling, open_engine
from inference_llms.engines.live_engine import open_live_engine
from inference_llms.engines.transformers import cut_at_stop
from tests.inference_llms.tiny_llama import BEGIN, CONTEXT, CUT, END, PROMPTS, write_tiny_llama
from utils.errors import UserError


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


def complete(engine, prompts, **sampling):
    completions = dict(engine.generate(prompts, Sampling(**sampling)))
    assert sorted(completions) == list(range(len(prompts)))
    return [completions[position] for position in range(len(prompts))]


@pytest.fixture(scope="module")
def by_hand(folder, tokenizer):
    """The greedy tokens of each prompt: the whole text run anew for every token, one prompt at a time."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    greedy = []
    for prompt in PROMPTS[:12]:
        tokens = tokenizer(prompt)["input_ids"]
        start = len(tokens)
        with torch.inference_mode():
            while len(tokens) < start + 24:
                tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
                if tokens[-1] in (END, CUT):
                    break
        greedy.append(tokens[start:])
    return greedy


def test_greedy_completions_are_those_of_plain_decoding(engine, tokenizer, by_hand):
    expected = [tokenizer.decode(tokens, skip_special_tokens=True).rstrip("\ufffd") for tokens in by_hand]
    assert complete(engine, PROMPTS[:12], max_tokens=24) == expected


def test_both_end_tokens_end_a_completion(engine, tokenizer, by_hand):
    """With each likely token made an end token in turn, completions stop right before it."""
    ends = engine._end_tokens
    assert ends == {END, CUT}
    frequent = by_hand[0][3]
    engine._end_tokens = ends | {frequent}
    try:
        (completion,) = complete(engine, PROMPTS[:1], max_tokens=24)
    finally:
        engine._end_tokens = ends
    assert completion == tokenizer.decode(by_hand[0][: by_hand[0].index(frequent)], skip_special_tokens=True)


def test_a_completion_says_whether_the_limit_of_tokens_ended_it(engine, by_hand):
    def cut_off(prompts, **sampling):
        return [isinstance(text, CutOff) for text in complete(engine, prompts, **sampling)]

    assert cut_off(PROMPTS[:12], max_tokens=24) == [tokens[-1] not in (END, CUT) for tokens in by_hand]
    ends = engine._end_tokens
    engine._end_tokens = ends | {by_hand[0][3]}
    try:
        assert cut_off(PROMPTS[:1], max_tokens=4) == [False]
    finally:
        engine._end_tokens = ends
    (text,) = complete(engine, PROMPTS[:1], max_tokens=24)
    assert cut_off(PROMPTS[:1], max_tokens=24, stop=(text[-2:], "zz")) == [False]
    assert cut_off([" a" * 2 * CONTEXT, " a" * (CONTEXT - 3)], max_tokens=100) == [True, True]


def test_a_completion_does_not_depend_on_the_prompts_beside_it(engine):
    together = complete(engine, PROMPTS, max_tokens=40, stop=("re",))
    alone = [complete(engine, [prompt], max_tokens=40, stop=("re",))[0] for prompt in PROMPTS]
    assert together == alone


def test_a_model_that_names_its_cache_anew_completes_alike(engine, monkeypatch):
    """transformers renames the argument in 5.24, and drops the old name in 5.40."""
    expected = complete(engine, PROMPTS[:4], max_tokens=8)
    forward = engine._model.forward
    of_now = "cache" if "cache" in inspect.signature(forward).parameters else "past_key_values"

    def with_cache(input_ids, cache, **options):
        return forward(input_ids=input_ids, **{of_now: cache}, **options)

    def with_past_key_values(input_ids, past_key_values, **options):
        return forward(input_ids=input_ids, **{of_now: past_key_values}, **options)

    for named in (with_cache, with_past_key_values):
        monkeypatch.setattr(engine._model, "forward", named)
        assert complete(engine, PROMPTS[:4], max_tokens=8) == expected


def test_transformers_has_nothing_to_warn_of(engine, capfd):
    verbosity = logging.get_verbosity()
    logging.set_verbosity_info()
    try:
        complete(engine, PROMPTS[:4], max_tokens=8)
    finally:
        logging.set_verbosity(verbosity)
    assert capfd.readouterr() == ("", "")


def test_prompts_wait_for_free_places_and_come_out_the_same(engine, monkeypatch):
    """Rows that join a batch half-way, beside rows that are further on, complete as they do alone."""
    at_once = complete(engine, PROMPTS, max_tokens=40, stop=("re",))
    monkeypatch.setattr(transformers_engine, "MOST_ROWS", 5)
    assert complete(engine, PROMPTS, max_tokens=40, stop=("re",)) == at_once


def test_completions_come_as_they_end(engine):
    """The first is there long before the longest is, and whoever stops listening leaves nothing behind."""
    expected = complete(engine, PROMPTS[:4], max_tokens=3)
    runs = []
    counting = engine._model.register_forward_hook(lambda *_: runs.append(1))
    listening = engine.generate(PROMPTS, Sampling(max_tokens=200, stop=("e",)))
    threads = torch.get_num_threads()
    next(listening)
    assert len(runs) < 100
    assert torch.get_num_threads() == threads
    assert not torch.is_inference_mode_enabled()
    listening.close()
    counting.remove()
    assert complete(engine, PROMPTS[:4], max_tokens=3) == expected


def test_stops_are_cut_off_at_their_first_place(engine):
    whole = complete(engine, PROMPTS, max_tokens=60)
    stops = ("re", "a", "zz")
    for text, cut in zip(whole, complete(engine, PROMPTS, max_tokens=60, stop=stops), strict=True):
        assert not any(stop in cut for stop in stops)
        assert text.startswith(cut)
        assert len(cut) == min([text.find(stop) for stop in stops if stop in text] + [len(text)])


def test_of_two_stops_the_one_complete_first_counts():
    assert cut_at_stop("so Instruction: go", ("Instruction:", "Instruction")) == "so "
    assert cut_at_stop("abcd", ("abcd", "bc")) == "a"
    assert cut_at_stop("nothing here", ("Response",)) == "nothing here"
    assert cut_at_stop("", ("Response",)) == ""


def test_max_tokens_counts_new_tokens(engine, tokenizer, by_hand):
    for count in (1, 2, 9):
        expected = [tokenizer.decode(new[:count], skip_special_tokens=True).rstrip("\ufffd") for new in by_hand]
        assert complete(engine, PROMPTS[:12], max_tokens=count) == expected


def test_special_tokens_are_added_to_prompts_and_left_out_of_completions(engine, tokenizer):
    assert tokenizer(PROMPTS[0])["input_ids"][0] == BEGIN
    for completion in complete(engine, PROMPTS, max_tokens=100):
        assert not any(token in completion for token in ("<s>", "</s>", "<unk>"))


def test_a_prompt_near_the_end_of_the_context_gets_what_room_there_is(engine, tokenizer, capsys):
    fits, full, too_long = (" a" * count for count in (CONTEXT - 3, CONTEXT - 1, 2 * CONTEXT))
    assert [len(tokenizer(text)["input_ids"]) for text in (fits, full)] == [CONTEXT - 2, CONTEXT]
    completions = complete(engine, [full, fits, too_long, PROMPTS[0]], max_tokens=100)
    assert completions[0] == completions[2] == ""
    assert 0 < len(tokenizer(completions[1], add_special_tokens=False)["input_ids"]) <= 2
    assert completions[3] == complete(engine, PROMPTS[:1], max_tokens=100)[0]
    notices = capsys.readouterr().err.strip().splitlines()
    assert notices == [f"2 of 4 prompts fill the model's context of {CONTEXT} tokens; they get empty completions"]


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


def test_a_live_engine_stops_where_the_folder_of_its_tokenizer_says(engine, folder, tmp_path):
    other = shutil.copytree(folder, tmp_path / "other")
    (other / "generation_config.json").write_text(json.dumps({"eos_token_id": 40}))
    live, plain = open_live_engine("transformers", folder, 1, 1), open_engine("transformers", other, 1, 1)
    live.take_tokenizer(other)
    completions = complete(live, PROMPTS[:12], max_tokens=40)
    assert completions == complete(plain, PROMPTS[:12], max_tokens=40)
    assert completions != complete(engine, PROMPTS[:12], max_tokens=40)
    live.close()
    plain.close()


def test_no_prompts_no_completions(engine):
    assert complete(engine, [], max_tokens=5) == []


def test_drawn_completions_repeat_and_follow_the_temperature(engine, tokenizer):
    drawn = complete(engine, PROMPTS, max_tokens=20, temperature=5.0)
    assert drawn == complete(engine, PROMPTS, max_tokens=20, temperature=5.0)
    greedy = complete(engine, PROMPTS, max_tokens=20)
    assert drawn != greedy
    assert complete(engine, PROMPTS, max_tokens=20, temperature=5.0, top_p=1e-6) == greedy
    assert complete(engine, PROMPTS, max_tokens=20, temperature=1e-4) == greedy


def test_first_tokens_are_drawn_with_the_models_probabilities(engine, folder, tokenizer):
    """2,000 draws after one prompt: the likeliest token's share is its probability within four standard errors."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    with torch.inference_mode():
        logits = model(torch.tensor([tokenizer(PROMPTS[0])["input_ids"]])).logits[0, -1]
    probabilities = torch.softmax(logits / 3.0, -1)
    probability, token = (value.item() for value in probabilities.max(-1))
    drawn = complete(engine, PROMPTS[:1] * 2000, max_tokens=1, temperature=3.0)
    share = drawn.count(tokenizer.decode([token])) / len(drawn)
    assert abs(share - probability) < 4 * (probability * (1 - probability) / len(drawn)) ** 0.5


def test_half_precision_checkpoints_run_in_float32_on_the_cpu(tmp_path, folder):
    if torch.cuda.device_count() > 0:
        pytest.skip("there is a GPU, which runs them as they are")
    half = open_engine("transformers", write_tiny_llama(tmp_path / "half", torch.bfloat16), 1, 1)
    assert {parameter.dtype for parameter in half._model.parameters()} == {torch.float32}
    assert len(complete(half, PROMPTS[:3], max_tokens=5)) == 3
    half.close()


def test_remote_code_is_refused(tmp_path, folder):
    remote = tmp_path / "remote"
    remote.mkdir()
    for path in folder.iterdir():
        (remote / path.name).write_bytes(path.read_bytes())
    config = json.loads((remote / "config.json").read_text())
    config |= {
        "model_type": "made_up",
        "auto_map": {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"},
    }
    (remote / "config.json").write_text(json.dumps(config))
    (remote / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(UserError, match="names code"):
        open_engine("transformers", remote, 1, 1)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("tokens_at_once", [1, 7, 40])
def test_prompts_run_in_pieces_and_with_a_shared_beginning_come_out_the_same(engine, monkeypatch, tokens_at_once):
    prompts = [PROMPTS[0] + prompt for prompt in PROMPTS[:6]] + [PROMPTS[0]]
    alone = [complete(engine, [prompt], max_tokens=20)[0] for prompt in prompts]
    assert complete(engine, prompts, max_tokens=20) == alone
    monkeypatch.setattr(decoding_batch, "TOKENS_AT_ONCE", tokens_at_once)
    assert complete(engine, prompts, max_tokens=20) == alone


def test_what_all_prompts_begin_with_is_run_once(engine):
    tokens = []
    counting = engine._model.register_forward_hook(
        lambda model, given, named, output: tokens.append(named["input_ids"].numel()), with_kwargs=True
    )
    prompts = [PROMPTS[0] + ending for ending in ("a", "b", "c", "d")]
    complete(engine, prompts, max_tokens=1)
    counting.remove()
    lengths = [len(ids) for ids in engine._tokenizer(prompts)["input_ids"]]
    assert sum(tokens) < sum(lengths) / 2
