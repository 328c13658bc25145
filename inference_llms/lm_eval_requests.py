"""Answer lm-evaluation-harness's requests with an engine: the harness's own encoding, all requests in one call."""

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, has_bos_prefix, normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from transformers import PreTrainedTokenizerBase

from inference_llms.engines.engine import Completion, Engine, Sampling
from inference_llms.prompt_format import CHAT_MARK, END_OF_THINKING, THINKING, begun_thinking
from inference_llms.task import before_stop
from inference_llms.tasks import LM_EVAL
from utils.errors import UserError

DEFAULT_NEW_TOKENS = 256  # the harness's
KNOWN_SETTINGS = {"do_sample", "temperature", "top_p", "until", "max_gen_toks"}
# Settings of other engines, with the value that changes nothing.
NEUTRAL_SETTINGS = {
    **{"num_beams": 1, "num_return_sequences": 1, "n": 1, "early_stopping": False, "use_cache": True},
    **{"repetition_penalty": 1, "length_penalty": 1, "no_repeat_ngram_size": 0},
    **{"frequency_penalty": 0, "presence_penalty": 0, "min_p": 0, "top_k": 0, "typical_p": 1},
}


@dataclass(frozen=True)
class Response:
    """The response to the request at `position`, its number of new tokens, and whether the limit cut it off."""

    position: int
    value: Any
    tokens: int = 0
    cut_off: bool = False


class RequestEncoder(TemplateLM):
    """Turns requests into tokens as the harness's own models do, and answers none."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, context: int = sys.maxsize, longest_scored: int = sys.maxsize
    ):
        """`context` and `longest_scored`: the engine's; without them nothing is cut."""
        super().__init__()
        self.tokenizer, self._context, self._longest_scored = tokenizer, context, longest_scored

    @property
    def eot_token_id(self) -> int:
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        begin = self.tokenizer.bos_token_id
        return self.eot_token_id if begin is None else begin

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """The tokens of a text; without special tokens if it begins with one."""
        if add_special_tokens is None and has_bos_prefix(string, self.tokenizer.decode(self.prefix_token_id)):
            add_special_tokens = False
        special = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        return self.tokenizer(string, verbose=False, **special)["input_ids"]

    def _loglikelihood_tokens(self, requests, **_: Any) -> list[tuple[list[int], list[int]]]:
        """The encoded requests themselves, cut on the left to what the engine can score."""
        texts = []
        for _words, before, after in requests:
            excess = max(len(before) + len(after) - self._longest_scored, 0)
            if excess >= len(before):
                raise UserError(
                    f"a text of {len(after)} tokens to score does not fit into the model's context of "
                    f"{self._context}; leave its task out"
                )
            texts.append((before[excess:], after))
        return texts

    def texts(self, pairs: Sequence[Instance]) -> list[tuple[list[int], list[int]]]:
        """Context and continuation of each request, as tokens."""
        return self.loglikelihood(list(pairs), disable_tqdm=True)

    def windows(self, text: str) -> list[tuple[list[int], list[int]]]:
        """A whole text as pairs of context and continuation, in which each token is scored once."""
        size = self._longest_scored - 1
        windows = get_rolling_token_windows(self.tok_encode(text), self.prefix_token_id, size, context_len=1)
        return [make_disjoint_window(window) for window in windows]

    def prompt(self, context: str, new_tokens: int) -> list[int]:
        """The tokens of a context, cut on the left to leave room for `new_tokens`."""
        room = self._context - new_tokens
        if room <= 0:
            raise UserError(
                f"the task asks for {new_tokens} new tokens, and the model's context has {self._context}; "
                "give a smaller --max_tokens"
            )
        return self.tok_encode(context)[-room:]

    def loglikelihood_rolling(self, requests, disable_tqdm: bool = False):
        raise NotImplementedError("the engine answers requests")

    generate_until = loglikelihood_rolling


@dataclass(frozen=True)
class Work:
    """Requests of one kind, and their `positions` among all. `thinks`: they are chats with a model that may think."""

    engine: Engine
    encoder: RequestEncoder
    positions: Sequence[int]
    requests: Sequence[Instance]
    max_tokens: int
    thinks: bool


def answer_requests(
    engine: Engine, requests: Sequence[Instance], max_tokens: int, are_chats: bool
) -> Iterator[Response]:
    """Answer requests, all of a kind in one call of the engine, in any order."""
    by_kind: dict[str, list[int]] = {}
    for position, request in enumerate(requests):
        by_kind.setdefault(request.request_type, []).append(position)
    encoder = RequestEncoder(engine.tokenizer, engine.context, engine.longest_scored)
    template = engine.tokenizer.get_chat_template() if are_chats else ""
    thinks = THINKING in template or END_OF_THINKING in template
    for kind, positions in by_kind.items():
        if kind not in ANSWERS:
            raise UserError(f"lm_eval: requests of the kind {kind} are not supported; leave the task out")
        of_kind = [requests[position] for position in positions]
        yield from ANSWERS[kind](Work(engine, encoder, positions, of_kind, max_tokens, thinks))


def _score_pairs(work: Work) -> Iterator[Response]:
    for done, likelihood in work.engine.log_likelihoods(work.encoder.texts(work.requests)):
        yield Response(work.positions[done], [likelihood.log_probability, likelihood.is_greedy])


def _score_texts(work: Work) -> Iterator[Response]:
    """The likelihood of whole texts, each the sum over its windows."""
    places, windows, found = [], [], []
    for number, request in enumerate(work.requests):
        of_text = work.encoder.windows(request.args[0])
        found.append([None] * len(of_text))
        places += [(number, place) for place in range(len(of_text))]
        windows += of_text
    for done, likelihood in work.engine.log_likelihoods(windows):
        number, place = places[done]
        found[number][place] = likelihood.log_probability
        if None not in found[number]:
            yield Response(work.positions[number], sum(found[number]))


def _generate(work: Work) -> Iterator[Response]:
    by_sampling: dict[tuple[Sampling, bool], list[int]] = {}
    for number, request in enumerate(work.requests):
        thinks = work.thinks and not request.args[0].rstrip().endswith(END_OF_THINKING)
        by_sampling.setdefault((_sampling(request, work.encoder, work.max_tokens), thinks), []).append(number)
    for (sampling, thinks), numbers in by_sampling.items():
        contexts = [work.requests[number].args[0] for number in numbers]
        prompts = [work.encoder.prompt(context, sampling.max_tokens) for context in contexts]
        # Engines would end the thinking at a stop too.
        for done, completion in work.engine.complete(prompts, replace(sampling, stop=()) if thinks else sampling):
            if thinks:
                completion = _cut_after_thinking(begun_thinking(contexts[done]), completion, sampling.stop)
            yield Response(work.positions[numbers[done]], str(completion), completion.tokens, completion.cut_off)


def _cut_after_thinking(begun: str, completion: Completion, stops: Sequence[str]) -> Completion:
    """The thinking that has `begun` and the completion, up to the first stop after the thinking."""
    text = begun + completion
    thought = THINKING in text or END_OF_THINKING in text
    answer = (text.partition(END_OF_THINKING)[2] if thought else text).lstrip()
    cut = before_stop(answer, stops)
    whole = text[: len(text) - len(answer)] + cut
    return Completion(whole, completion.tokens, completion.cut_off and cut == answer)


ANSWERS = {"loglikelihood": _score_pairs, "loglikelihood_rolling": _score_texts, "generate_until": _generate}


def _sampling(request: Instance, encoder: RequestEncoder, max_tokens: int) -> Sampling:
    """The sampling that a request asks for. Raises UserError for settings that engines here do not have."""
    settings = normalize_gen_kwargs(dict(request.args[1]), DEFAULT_NEW_TOKENS)
    unknown = [(name, value) for name, value in settings.items() if name not in KNOWN_SETTINGS]
    if lacking := [f"{name} {value}" for name, value in unknown if (name, value) not in NEUTRAL_SETTINGS.items()]:
        name = f"{LM_EVAL}{request.task_name}"
        raise UserError(f"{name}: sets {', '.join(lacking)}, which engines here lack; leave the task out")
    end = encoder.tokenizer.decode(encoder.eot_token_id)
    return Sampling(
        max_tokens=min(settings["max_gen_toks"], max_tokens),
        stop=tuple(stop for stop in handle_stop_sequences(settings["until"], end) if stop),
        temperature=settings.get("temperature", 0.0),  # as `--model hf` does
        top_p=settings.get("top_p", 1.0),
    )


def requests_as_read(requests: Sequence[Instance], encoder: RequestEncoder, max_tokens: int) -> tuple[str, int, str]:
    """How the requests of a document are answered, the number of tokens of the longest, and the text of their tokens:
    each context once, with the texts to score below, as JSON."""
    if requests[0].request_type == "generate_until":
        tokens = encoder.tok_encode(requests[0].args[0])
        return _sampling(requests[0], encoder, max_tokens).in_words(), len(tokens), encoder.tokenizer.decode(tokens)
    if requests[0].request_type == "loglikelihood_rolling":
        ((before, after),) = encoder.windows(requests[0].args[0])
        return "the whole text is scored", len(before + after), encoder.tokenizer.decode(before + after)
    texts = encoder.texts(requests)
    by_context: dict[str, list[str]] = {}
    for before, after in texts:
        scored = json.dumps(encoder.tokenizer.decode(after), ensure_ascii=False)
        by_context.setdefault(encoder.tokenizer.decode(before), []).append(scored)
    text = "\n".join("\n-> ".join([context, *scored]) for context, scored in by_context.items())
    return "nothing is generated; each text after -> is scored", max(len(a + b) for a, b in texts), text


def chat_as_text(history: Sequence[Mapping[str, str]], add_generation_prompt: bool = True) -> str:
    """A chat in place of the text that a template makes of it, for requests that are built without a model."""
    return f"{CHAT_MARK}{json.dumps([history, add_generation_prompt])}{CHAT_MARK}"


def with_template(context: str, render: Callable[[list[dict[str, str]], bool], str]) -> str:
    """A context with the chat in it rendered."""
    before, mark, rest = context.partition(CHAT_MARK)
    if not mark:
        return context
    chat, _, after = rest.partition(CHAT_MARK)
    return before + render(*json.loads(chat)) + after
