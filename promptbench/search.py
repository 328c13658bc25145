"""Search for the prompt that lowers a model's accuracy most."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

from promptbench.attack import Attack, WholePromptAttack, WordAttack
from promptbench.prompt_task import PLACEHOLDER
from promptbench.prompt_words import PromptWords
from utils.errors import UserError

UNKNOWN_WORD = "[UNK]"

# Returns the accuracy with each prompt, in [0, 1]. Takes all prompts in one call, so that an engine can batch them.
Score = Callable[[Sequence[str]], Sequence[float]]


@dataclass(frozen=True)
class ScoredPrompt:
    """A prompt and the accuracy with it."""

    prompt: str
    accuracy: float


@dataclass(frozen=True)
class RankedWord:
    """A word of the clean prompt, and the accuracy with `prompt`, which lacks it. `drop`: from the clean accuracy."""

    index: int
    word: str
    prompt: str
    accuracy: float
    drop: float


@dataclass(frozen=True)
class SearchStep:
    """The candidates for one word, or for the whole prompt (then `index` and `word` are None).

    `index` and `word`: in the clean prompt. `refused`: candidates that violate the constraint or break the placeholder.
    `not_asked`: candidates left unscored by the query budget. `prompt_after`: the prompt that the search continues
    with; the best candidate if it was `accepted`.
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
    """The outcome of a search and its steps.

    `number_of_queries`: the number of scored prompts, including the clean one. `changed_places`: (start, end) offsets
    in the final prompt of new or changed words. `ranking`: in prompt order. `steps`: in search order.
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
        """(clean accuracy − final accuracy) / clean accuracy; None (undefined) if the clean accuracy is 0."""
        return (self.clean_accuracy - self.final_accuracy) / self.clean_accuracy if self.clean_accuracy else None


def search(
    attack: Attack, clean: str, protected: frozenset[str], score: Score, query_budget: int | None = None
) -> SearchResult:
    """Attack the prompt `clean`.

    A `WordAttack` goes through the words that may be changed (none of `protected`, in lower case), the most important
    first, and keeps a word's candidate of lowest accuracy if that is below the accuracy so far. Ties go to the first
    candidate by code points and to the first word in the prompt. A `WholePromptAttack` takes the first candidate of
    lowest accuracy, even if the clean prompt's accuracy is lower.

    No prompt is scored twice. At most `query_budget` prompts are scored, including the clean one. `score` is called
    once for the clean prompt and the ranking together, then once per word; for a `WholePromptAttack` only once.

    Raises UserError for a budget below 1, and if no candidate for the whole prompt keeps its `{content}`.
    """
    if query_budget is not None and query_budget < 1:
        raise UserError(f"a query budget of {query_budget} leaves no query for the clean prompt; give 1 or more")
    accuracies = _Accuracies(score, query_budget)
    if isinstance(attack, WordAttack):
        return _change_words(attack, PromptWords.of(clean), protected, accuracies)
    return _take_worst(attack, PromptWords.of(clean), accuracies)


class _Accuracies:
    """The accuracies of all scored prompts. Scores no prompt twice, and at most `budget` prompts."""

    def __init__(self, score: Score, budget: int | None):
        self._score = score
        self._budget = budget
        self._known: dict[str, float] = {}

    def of(self, prompts: Sequence[str]) -> dict[str, float]:
        """The accuracies of the prompts within the budget."""
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._known]
        new = new if self._budget is None else new[: self._budget - len(self._known)]
        if new:
            self._known.update(zip(new, self._score(new), strict=True))
        return {prompt: self._known[prompt] for prompt in prompts if prompt in self._known}

    def __len__(self) -> int:
        return len(self._known)

    @property
    def exhausted(self) -> bool:
        return len(self) == self._budget


def _change_words(
    attack: WordAttack, clean: PromptWords, protected: frozenset[str], accuracies: _Accuracies
) -> SearchResult:
    clean_accuracy, ranking = _rank_words(attack, clean, protected, accuracies)
    current, accuracy = clean, clean_accuracy
    index_now = {word.index: word.index for word in ranking}
    steps = []
    for ranked in sorted(ranking, key=lambda word: (word.accuracy, word.index)):
        if accuracies.exhausted:
            break
        index = index_now[ranked.index]
        changes = {
            change.text: change
            for change in (current.replace(index, new) for new in attack.substitutes(current, index))
            if change is not current
        }
        whole = [text for text in sorted(changes) if _keeps_placeholder(text, clean)]
        close = attack.holds(clean, current, [changes[text] for text in whole]) if whole else []
        kept = [text for text, holds in zip(whole, close, strict=True) if holds]
        scored = accuracies.of(kept)
        best = min(scored, key=scored.__getitem__, default=current.text)
        accepted = best in scored and scored[best] < accuracy
        if accepted:
            added = len(changes[best].words) - len(current.words)
            index_now = {first: now + (added if now > index else 0) for first, now in index_now.items()}
            current, accuracy = changes[best], scored[best]
        steps.append(_step(ranked.index, ranked.word, sorted(changes), kept, scored, accepted, current.text))
    return SearchResult(
        clean_prompt=clean.text,
        clean_accuracy=clean_accuracy,
        final_prompt=current.text,
        final_accuracy=accuracy,
        number_of_queries=len(accuracies),
        changed_places=tuple(current.places[index] for index in sorted(current.changed)),
        ranking=tuple(ranking),
        steps=tuple(steps),
    )


def _rank_words(
    attack: WordAttack, clean: PromptWords, protected: frozenset[str], accuracies: _Accuracies
) -> tuple[float, list[RankedWord]]:
    """The clean prompt's accuracy, and the words that may change, each with the accuracy without it."""
    indices = clean.modifiable(protected)
    without = [
        (clean.replace(index, UNKNOWN_WORD) if attack.rank_by == "unk" else clean.delete(index)).text
        for index in indices
    ]
    scored = accuracies.of([clean.text, *without])
    clean_accuracy = scored[clean.text]
    ranking = [
        RankedWord(index, clean.words[index], prompt, scored[prompt], clean_accuracy - scored[prompt])
        for index, prompt in zip(indices, without, strict=True)
        if prompt in scored
    ]
    return clean_accuracy, ranking


def _take_worst(attack: WholePromptAttack, clean: PromptWords, accuracies: _Accuracies) -> SearchResult:
    prompts = list(dict.fromkeys(attack.prompts(clean)))
    kept = [prompt for prompt in prompts if _keeps_placeholder(prompt, clean)]
    if prompts and not kept:
        raise UserError(f"every candidate breaks {PLACEHOLDER}; add a word after it to the prompt: {clean.text!r}")
    clean_accuracy = accuracies.of([clean.text, *kept])[clean.text]
    scored = accuracies.of(kept)
    worst = min(scored, key=scored.__getitem__, default=clean.text)
    return SearchResult(
        clean_prompt=clean.text,
        clean_accuracy=clean_accuracy,
        final_prompt=worst,
        final_accuracy=scored.get(worst, clean_accuracy),
        number_of_queries=len(accuracies),
        changed_places=_new_words(clean, PromptWords.of(worst)),
        ranking=(),
        steps=(_step(None, None, prompts, kept, scored, worst != clean.text, worst),),
    )


def _keeps_placeholder(prompt: str, clean: PromptWords) -> bool:
    return prompt.count(PLACEHOLDER) == clean.text.count(PLACEHOLDER)


def _step(
    index: int | None,
    word: str | None,
    prompts: Sequence[str],
    kept: Sequence[str],
    scored: dict[str, float],
    accepted: bool,
    prompt_after: str,
) -> SearchStep:
    candidates = tuple(ScoredPrompt(prompt, accuracy) for prompt, accuracy in scored.items())
    refused = tuple(prompt for prompt in prompts if prompt not in kept)
    not_asked = tuple(prompt for prompt in kept if prompt not in scored)
    return SearchStep(index, word, candidates, refused, not_asked, accepted, prompt_after)


def _new_words(clean: PromptWords, final: PromptWords) -> tuple[tuple[int, int], ...]:
    """The places in `final` of words that are new or differ from `clean`, except the placeholder's."""
    pieces = SequenceMatcher(None, clean.words, final.words, autojunk=False).get_opcodes()
    new = (place for kind, _, _, start, end in pieces if kind != "equal" for place in final.places[start:end])
    return tuple((start, end) for start, end in new if final.text[start - 1 : end + 1] != PLACEHOLDER)
