"""What an engine is: prompts and sampling in, completions out."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Sampling:
    """How completions are drawn: greedily, as everywhere in the paper, unless said otherwise.

    `stop` strings end a completion and are not part of it. `max_tokens` counts new tokens; a prompt
    that leaves less room in the model's context gets what room there is.
    """

    max_tokens: int
    stop: tuple[str, ...] = ()
    temperature: float = 0.0
    top_p: float = 1.0


class Engine(Protocol):
    """A loaded model that completes text. Special tokens are added to prompts by the model's
    tokenizer and skipped in completions."""

    def generate(self, prompts: Sequence[str], sampling: Sampling) -> Iterator[tuple[int, str]]:
        """Complete all `prompts` at once, yielding (position in `prompts`, completion) as each is
        done, in whatever order that happens."""
        ...

    def close(self) -> None:
        """Free the model's memory and every process that the engine started."""
        ...
