"""The search for the prompt that lowers a model's accuracy most."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

from promptbench.attack import Attack, WholePromptAttack, WordAttack
from promptbench.prompt_task import PLACEHOLDER
from promptbench.prompt_words import PromptWords
from utils.errors import UserError

UNKNOWN_WORD = "[UNK]"

# The accuracy with each of the prompts, in [0, 1] and in their order; in one call, so that an engine can take all.
Score = Callable[[Sequence[str]], Sequence[float]]


@dataclass(frozen=True)
class ScoredPrompt:
    """A prompt and the accuracy with it."""

    prompt: str
    accuracy: float


@dataclass(frozen=True)
class RankedWord:
    """A word of the clean prompt, and what the accuracy is without it: with `prompt`. `drop`: from the clean one."""

    index: int
    word: str
    prompt: str
    accuracy: float
    drop: float


@dataclass(frozen=True)
class SearchStep:
    """What was tried on a word, or on the whole prompt (`index` and `word` are None then).

    `index` and `word`: of the clean prompt. `refused`: candidates that the constraint forbids or that broke the
    placeholder. `not_asked`: those that the query budget left out. `prompt_after`: the prompt that the search goes on
    with, the best candidate if it was `accepted`.
    """

    index: int | None
    word: str | None
    candidates: tuple[ScoredPrompt, ...]
    refused: tuple[str, ...]
    not_asked: tuple[str, ...]
    accepted: bool
    prompt_after: str


@dataclass(frozen=True)
class SearchResult:
    """What a search found and how.

    `number_of_queries`: scored prompts, the clean one included. `changed_places`: offsets (start, end) in the final
    prompt of the words that are new or changed. `ranking`: in the order of the prompt. `steps`: in the order taken.
    """

    clean_prompt: str
    clean_accuracy: float
    final_prompt: str
    final_accuracy: float
    number_of_queries: int
    changed_places: tuple[tuple[int, int], ...]
    ranking: tuple[RankedWord, ...]
    steps: tuple[SearchStep, ...]

    @property
    def performance_drop_rate(self) -> float | None:
        """(clean accuracy − final accuracy) / clean accuracy; None, for it is undefined, where the clean one is 0."""
        return (self.clean_accuracy - self.final_accuracy) / self.clean_accuracy if self.clean_accuracy else None


def search(
    attack: Attack, clean: str, protected: frozenset[str], score: Score, query_budget: int | None = None
) -> SearchResult:
    """Attack the prompt `clean`.

    A `WordAttack` goes down the words that may be changed (none of `protected`, in lower case), the most important
    first, and at each keeps the candidate of lowest accuracy if that is below the accuracy so far; of equal candidates
    the first by code points, of equally important words the first in the prompt. A `WholePromptAttack` takes the
    candidate of lowest accuracy, the first of equals, even if the clean prompt's is lower.
    No prompt is scored twice, and at most `query_budget` in all, the clean one included: what does not fit is not
    asked. `score` is called once for the clean prompt and the ranking together, then once a word; for a
    `WholePromptAttack` once in all.

    Raises UserError for a budget below 1, and where no candidate for the whole prompt keeps its `{content}`.
    """
    if query_budget is not None and query_budget < 1:
        raise UserError(f"a query budget of {query_budget} leaves no query for the clean prompt; give 1 or more")
    accuracies = _Accuracies(score, query_budget)
    if isinstance(attack, WordAttack):
        return _change_words(attack, PromptWords.of(clean), protected, accuracies)
    return _take_worst(attack, PromptWords.of(clean), accuracies)


class _Accuracies:
    """The accuracies of all prompts asked so far: none is asked twice, none beyond the budget."""

    def __init__(self, score: Score, budget: int | None):
        self._score = score
        self._budget = budget
        self._known: dict[str, float] = {}

    def ask(self, prompts: Sequence[str]) -> dict[str, float]:
        """The accuracies of the prompts, without those that did not fit."""
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._known]
        new = new if self._budget is None else new[: self._budget - len(self._known)]
        if new:
            self._known.update(zip(new, self._score(new), strict=True))
        return {prompt: self._known[prompt] for prompt in prompts if prompt in self._known}

    @property
    def number(self) -> int:
        return len(self._known)

    @property
    def exhausted(self) -> bool:
        return self.number == self._budget


def _change_words(
    attack: WordAttack, clean: PromptWords, protected: frozenset[str], accuracies: _Accuracies
) -> SearchResult:
    indices = clean.modifiable(protected)
    without = [
        (clean.replace(index, UNKNOWN_WORD) if attack.rank_by == "unk" else clean.delete(index)).text
        for index in indices
    ]
    asked = accuracies.ask([clean.text, *without])
    clean_accuracy = asked[clean.text]
    ranking = [
        RankedWord(index, clean.words[index], prompt, asked[prompt], clean_accuracy - asked[prompt])
        for index, prompt in zip(indices, without, strict=True)
        if prompt in asked
    ]

    current, accuracy = clean, clean_accuracy
    place_now = {word.index: word.index for word in ranking}
    steps = []
    for ranked in sorted(ranking, key=lambda word: (word.accuracy, word.index)):
        if accuracies.exhausted:
            break
        index = place_now[ranked.index]
        changes = {
            change.text: change
            for change in (current.replace(index, new) for new in attack.substitutes(current, index))
            if change is not current
        }
        whole = [text for text in sorted(changes) if text.count(PLACEHOLDER) == clean.text.count(PLACEHOLDER)]
        near = attack.holds(clean, current, [changes[text] for text in whole]) if whole else []
        kept = [text for text, holds in zip(whole, near, strict=True) if holds]
        asked = accuracies.ask(kept)
        best = min(asked, key=asked.__getitem__, default=current.text)
        accepted = best in asked and asked[best] < accuracy
        if accepted:
            added = len(changes[best].words) - len(current.words)
            place_now = {first: now + (added if now > index else 0) for first, now in place_now.items()}
            current, accuracy = changes[best], asked[best]
        steps.append(
            SearchStep(
                index=ranked.index,
                word=ranked.word,
                candidates=_scored(asked),
                refused=tuple(text for text in sorted(changes) if text not in kept),
                not_asked=tuple(text for text in kept if text not in asked),
                accepted=accepted,
                prompt_after=current.text,
            )
        )
    return SearchResult(
        clean_prompt=clean.text,
        clean_accuracy=clean_accuracy,
        final_prompt=current.text,
        final_accuracy=accuracy,
        number_of_queries=accuracies.number,
        changed_places=tuple(current.places[index] for index in sorted(current.changed)),
        ranking=tuple(ranking),
        steps=tuple(steps),
    )


def _take_worst(attack: WholePromptAttack, clean: PromptWords, accuracies: _Accuracies) -> SearchResult:
    prompts = list(dict.fromkeys(attack.prompts(clean)))
    kept = [prompt for prompt in prompts if prompt.count(PLACEHOLDER) == clean.text.count(PLACEHOLDER)]
    if prompts and not kept:
        raise UserError(f"no candidate keeps {PLACEHOLDER} as it is; give the prompt a word after it: {clean.text!r}")
    clean_accuracy = accuracies.ask([clean.text, *kept])[clean.text]
    asked = accuracies.ask(kept)
    worst = min(asked, key=asked.__getitem__, default=clean.text)
    step = SearchStep(
        index=None,
        word=None,
        candidates=_scored(asked),
        refused=tuple(prompt for prompt in prompts if prompt not in kept),
        not_asked=tuple(prompt for prompt in kept if prompt not in asked),
        accepted=worst != clean.text,
        prompt_after=worst,
    )
    return SearchResult(
        clean_prompt=clean.text,
        clean_accuracy=clean_accuracy,
        final_prompt=worst,
        final_accuracy=asked.get(worst, clean_accuracy),
        number_of_queries=accuracies.number,
        changed_places=_new_words(clean, PromptWords.of(worst)),
        ranking=(),
        steps=(step,),
    )


def _scored(accuracies: dict[str, float]) -> tuple[ScoredPrompt, ...]:
    return tuple(ScoredPrompt(prompt, accuracy) for prompt, accuracy in accuracies.items())


def _new_words(clean: PromptWords, final: PromptWords) -> tuple[tuple[int, int], ...]:
    """The places in `final` of the words that stand there for others of `clean`, or between them; the placeholder's
    is none of them."""
    pieces = SequenceMatcher(None, clean.words, final.words, autojunk=False).get_opcodes()
    new = (place for kind, _, _, start, end in pieces if kind != "equal" for place in final.places[start:end])
    return tuple((start, end) for start, end in new if final.text[start - 1 : end + 1] != PLACEHOLDER)
