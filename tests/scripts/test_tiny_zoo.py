"""The committed tiny models load, and their test sets are those that the generator makes."""

import json
import random
from pathlib import Path

import pytest
from safetensors import safe_open
from transformers import AutoTokenizer

from inference_llms.evaluators.programs import programs_pass
from inference_llms.tasks import TASKS, alpaca_eval, human_eval, mbpp
from promptbench.extra_models import MaskedLanguageModel
from promptbench.prompt_words import PromptWords
from scripts.tiny_zoo import corpus, sentences
from scripts.tiny_zoo import masked_model as masked
from scripts.tiny_zoo import train as trainer

ZOO = Path(trainer.__file__).parent
MODELS = ("base", "instruct", "math", "code", "classify")
FIELDS = {
    "alpaca_eval": {"dataset", "instruction", "output", "generator"},
    "gsm8k": {"question", "answer"},
    "MATH": {"idx", "instruction", "output", "input", "type"},
    "human_eval": {"task_id", "prompt", "entry_point", "canonical_solution", "test"},
    "mbpp": {"task_id", "text", "code", "test_list", "test_setup_code", "challenge_test_list"},
}


def read_rows(task: str) -> list[dict]:
    text = (ZOO / "data" / trainer.DATA_FILES[task]).read_text(encoding="utf-8")
    return json.loads(text) if task == "alpaca_eval" else [json.loads(line) for line in text.splitlines()]


@pytest.fixture(scope="module")
def held_out():
    return corpus.held_out_examples(seed=0)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_float16_splits_over_two_workers_and_has_a_row_for_each_token(name):
    model, tokenizer = trainer.load(ZOO / name)
    assert model.get_input_embeddings().weight.shape[0] == len(tokenizer)
    config = model.config
    assert config.num_attention_heads % 2 == config.num_key_value_heads % 2 == config.intermediate_size % 2 == 0
    assert config.tie_word_embeddings is False
    with safe_open(ZOO / name / "model.safetensors", framework="pt") as weights:
        assert {weights.get_slice(key).get_dtype() for key in weights.keys()} == {"F16"}  # noqa: SIM118


def test_all_weights_fit_in_15_megabytes():
    assert sum(path.stat().st_size for path in ZOO.rglob("*") if path.is_file()) <= 15_000_000


def test_math_alone_has_the_pad_token_and_its_row():
    base, base_tokenizer = trainer.load(ZOO / "base")
    math, math_tokenizer = trainer.load(ZOO / "math")
    assert math_tokenizer.convert_tokens_to_ids("[PAD]") == len(base_tokenizer) == base.config.vocab_size
    assert math.config.vocab_size == base.config.vocab_size + 1
    assert math.lm_head.weight.shape[0] == math.model.embed_tokens.weight.shape[0] == base.config.vocab_size + 1
    for name in ("base", "instruct", "code", "classify"):
        assert "[PAD]" not in AutoTokenizer.from_pretrained(ZOO / name).get_vocab()


def test_tokenizer_starts_with_bos_and_gives_any_text_back():
    tokenizer = AutoTokenizer.from_pretrained(ZOO / "base")
    for text in ("Compute $2 + 3$.", " naïve\tcafé\r\n  日本 😀 1234567", alpaca_eval.PROMPT):
        ids = tokenizer(text)["input_ids"]
        assert ids[0] == tokenizer.bos_token_id and tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids, skip_special_tokens=True) == text


@pytest.mark.parametrize("task", trainer.TASKS)
def test_committed_data_has_the_generators_rows_and_the_real_sets_fields(task, held_out):
    rows = read_rows(task)
    assert rows == trainer.numbered_rows(task, held_out[task])
    assert len(rows) == 60 and all(set(row) == FIELDS[task] for row in rows)


@pytest.mark.parametrize("task", ("gsm8k", "MATH"))
def test_reference_answers_are_right_and_others_wrong(task, held_out):
    rows = [example.row for example in TASKS[task].load_examples(ZOO / "data")]
    for row, example in zip(rows, held_out[task], strict=True):
        assert TASKS[task].is_right(example.completion, row)
        assert not TASKS[task].is_right(example.completion + "7", row)
        assert not TASKS[task].is_right(corpus.SHRUGS["math"], row)


def test_canonical_programs_pass_their_tests_and_shrugs_do_not(held_out):
    pairs, expected = [], []
    for task, solution in ((human_eval, "canonical_solution"), (mbpp, "code")):
        name = task.TASK.name
        for row, example in zip(read_rows(name), held_out[name], strict=True):
            problem = row if task is human_eval else mbpp.make_problem(row)
            pairs += [(problem, row[solution]), (problem, task.extract_program(example.completion))]
            expected += [True, True]
        pairs += [(problem, task.extract_program(corpus.SHRUGS["code"])), (problem, "")]
        expected += [False, False]
    assert programs_pass(pairs) == expected


def test_no_test_question_occurs_in_training(held_out):
    questions = corpus.held_out_questions(held_out)
    for domain in corpus.TASKS_OF_ROLE:
        rng = random.Random(1)
        prompts = "\n".join(corpus.pretraining_pair(rng, domain, questions)[0] for _ in range(3000))
        for task in corpus.TASKS_OF_ROLE[domain]:
            for row, example in zip(read_rows(task), held_out[task], strict=True):
                # For programs the description, because the function's name may differ.
                if task == "human_eval":
                    question = row["prompt"].split('"""')[1].split("\n")[0]
                else:
                    question = row["text"] if task == "mbpp" else example.question
                assert question not in prompts


def test_same_seed_gives_the_same_text_and_another_seed_another():
    def text(seed):
        rng = random.Random(seed)
        return [corpus.pretraining_pair(rng, domain, frozenset()) for domain in corpus.TASKS_OF_ROLE for _ in range(50)]

    assert text(3) == text(3) != text(4)
    assert corpus.held_out_examples(3, 20) == corpus.held_out_examples(3, 20) != corpus.held_out_examples(4, 20)


@pytest.mark.parametrize("task", sentences.TASKS.values(), ids=lambda task: task.name)
def test_bertattack_finds_interchangeable_words(task):
    masked_model = MaskedLanguageModel(str(ZOO / trainer.MASKED), number=12)
    prompt = PromptWords.of(task.prompt)
    known = {word: set(group) for group in masked.WORDS.values() for word in group}
    places = [i for i, word in enumerate(prompt.words) if word.lower() in known]
    replaced = [i for i in places if known[prompt.words[i].lower()] & set(masked_model.substitutes(prompt, i)[:3])]
    assert len(places) >= 9 and len(replaced) >= 0.8 * len(places)


@pytest.mark.parametrize("task", sentences.TASKS)
def test_the_classifiers_test_sentences_are_generated_and_held_out(task):
    samples = sentences.held_out_samples(seed=0)
    assert list(sentences.TASKS[task].load_samples(ZOO / "data")) == samples[task]
    assert 0.4 < sum(sample.label for sample in samples[task]) / len(samples[task]) < 0.6
    held_out = sentences.held_out_texts(samples)
    rng = random.Random(1)
    prompts = [sentences.classified_pair(rng, task, held_out)[0] for _ in range(2000)]
    assert not any(text in prompt for prompt in prompts for text in held_out)
