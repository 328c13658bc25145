"""The interface of engines: prompts and sampling in, completions out, with weights that can be replaced."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Sampling:
    """Settings for choosing the tokens of a completion; by default greedy, as everywhere in the paper.

    `stop` strings end a completion and are not part of it. `max_tokens` counts new tokens; a prompt
    that leaves less room in the model's context gets only that room.
    """

    max_tokens: int
    stop: tuple[str, ...] = ()
    temperature: float = 0.0
    top_p: float = 1.0

    def capped(self, max_tokens: int | None) -> "Sampling":
        """The same sampling with at most `max_tokens` new tokens; None: unchanged."""
        return self if max_tokens is None else replace(self, max_tokens=min(self.max_tokens, max_tokens))

    def in_words(self) -> str:
        """What ends an answer."""
        ends = ", ".join(map(repr, self.stop)) or "the model's own end tokens"
        return f"at most {self.max_tokens} new tokens; an answer ends at {ends}"


@dataclass(frozen=True)
class Chat:
    """A question that the model's own chat template turns into a prompt, after the system prompt if there is one.

    `thinking`: the template's switch, on or off; None: as the template has it."""

    question: str
    system_prompt: str | None = None
    thinking: bool | None = None

    @property
    def messages(self) -> list[dict[str, str]]:
        system = [] if self.system_prompt is None else [{"role": "system", "content": self.system_prompt}]
        return [*system, {"role": "user", "content": self.question}]


# Text as it is, a chat, or tokens.
Prompt = str | Chat | Sequence[int]


class Completion(str):
    """The text of a completion. `tokens`: how many new tokens it took, a stop's and an end token included. `cut_off`:
    `max_tokens` or the model's context ended it, not the model."""

    tokens: int
    cut_off: bool

    def __new__(cls, text: str, tokens: int, cut_off: bool = False) -> "Completion":
        completion = super().__new__(cls, text)
        completion.tokens, completion.cut_off = tokens, cut_off
        return completion


# For a prompt that leaves no room.
NO_ROOM = Completion("", 0, cut_off=True)


@dataclass(frozen=True)
class Likelihood:
    """The log-probability of a continuation, and whether greedy choices would generate it."""

    log_probability: float
    is_greedy: bool


@dataclass(frozen=True)
class ScoredText:
    """The tokens of a prompt and its greedy completion, and the log-probability of each token after the first."""

    tokens: Sequence[int]
    prompt_length: int
    log_probabilities: Sequence[float]


class Weights(Protocol):
    """The weights of a model, under the names and in the shapes of its checkpoint. Iterated once for each replacement.
    Can be pickled, for processes that compute them separately."""

    def __iter__(self) -> Iterator[tuple[str, "Tensor"]]: ...


class Engine(Protocol):
    """A loaded model that completes text. The tokenizer adds special tokens to prompts; completions contain none. An
    engine opened without weights needs `replace_weights` before its completions mean anything.

    `context`: the largest number of tokens of a prompt and its completion together; `longest_scored`: of a text whose
    likelihood is computed."""

    tokenizer: "PreTrainedTokenizerBase"
    context: int
    longest_scored: int

    def complete(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[tuple[int, Completion]]:
        """Complete all `prompts` in one batch, yielding (position in `prompts`, completion) as each ends, in any order.

        A prompt that leaves no room in the model's context gets an empty completion that is cut off, and one line on
        stderr reports it. A completion of tokens is decoded by itself, others together with their prompt.
        """
        ...

    def log_likelihoods(self, texts: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Iterator[tuple[int, Likelihood]]:
        """The likelihood of the second part of each text given the first, both as tokens: at least one each and
        `longest_scored` together. Yields (position in `texts`, likelihood) as each is computed, in any order."""
        ...

    def replace_weights(self, weights: Weights) -> None:
        """Compute with these weights from now on, and forget everything computed with earlier ones. Raises UserError
        for a tensor whose name or shape the model does not have, and for a missing one."""
        ...

    def take_tokenizer(self, folder: Path) -> None:
        """Use the tokenizer and the stop tokens of this folder from now on."""
        ...

    def checksum(self) -> str:
        """A hash of all weights that the engine computes with. Engines of the same kind, size and dtype have the same
        hash only if they hold the same bits."""
        ...

    def close(self) -> None:
        """Free the model's memory and end every process that the engine started."""
        ...
