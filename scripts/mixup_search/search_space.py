"""What a search ranges over: the values that options may take, and the merges that it is compared with."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from model_merging_methods.merge_parameters import MergeParameters, Mixup
from model_merging_methods.merging_methods import MERGING_METHODS
from model_merging_methods.mixup import two_model_weights
from scripts.mixup_search.candidate import Candidate
from utils.errors import UserError

# The options that a search may range over beside the ratios, in the order in which they are drawn.
OPTIONS = ("alpha", "scaling_coefficient", "weight_mask_rate", "param_value_mask_rate")
_RATES = ("weight_mask_rate", "param_value_mask_rate")


@dataclass(frozen=True)
class Values:
    """The values of an option: the listed numbers, or, where `is_range`, all between two numbers."""

    numbers: tuple[float, ...]
    is_range: bool = False

    @property
    def is_fixed(self) -> bool:
        return len(self.numbers) == 1

    @property
    def plain_choice(self) -> float:
        """What stands for the option where it is not drawn: the first listed number, the middle of a range."""
        return sum(self.numbers) / 2 if self.is_range else self.numbers[0]

    def at(self, share: float) -> float:
        """The value at `share` of the way, 0 <= share <= 1; listed numbers have equal parts of it."""
        if self.is_range:
            low, high = self.numbers
            return min(low + share * (high - low), high)
        return self.numbers[min(int(share * len(self.numbers)), len(self.numbers) - 1)]


def parse_values(option: str, words: Sequence[str]) -> Values:
    """The values that the words of an option (a name of `OPTIONS`) mean: `0.5`, `0.2 0.5` or `0.5:1.5`.

    Raises UserError, naming the option, for words that mean none, and for rates outside [0, 1].
    """
    typed = f"--{option} {' '.join(words)}"
    if len(words) > 1 and any(":" in word for word in words):
        raise UserError(f"{typed}: give either numbers or one range low:high")
    is_range = ":" in words[0]
    try:
        numbers = tuple(float(number) for word in words for number in word.split(":"))
    except ValueError:
        raise UserError(f"{typed}: give numbers, or a range low:high") from None
    if not all(math.isfinite(number) for number in numbers):
        raise UserError(f"{typed}: give finite numbers")
    if option in _RATES and not all(0 <= number <= 1 for number in numbers):
        raise UserError(f"{typed}: a rate lies between 0 and 1")
    if is_range and (len(numbers) != 2 or numbers[0] >= numbers[1]):
        raise UserError(f"{typed}: a range is low:high, with low below high")
    if not is_range and len(set(numbers)) < len(numbers):
        raise UserError(f"{typed}: names a number twice; name each once")
    return Values(numbers, is_range)


@dataclass(frozen=True)
class SearchSpace:
    """The merges that a search may propose: `base`, a merge of so many models, at any ratios and values of the options.

    What `base` itself has of these plays no part.
    """

    number_of_models: int
    base: MergeParameters
    alpha: Values
    scaling_coefficient: Values
    weight_mask_rate: Values
    param_value_mask_rate: Values

    @property
    def searched(self) -> dict[str, Values]:
        """The options that have more than one value."""
        return {name: getattr(self, name) for name in OPTIONS if not getattr(self, name).is_fixed}

    def check(self) -> None:
        """Raise UserError for an option that is searched and would change nothing, and for a base that makes no
        sense."""
        without_use = []
        if self.base.mask is None:
            without_use.append("weight_mask_rate")
        if self.base.method == "average_merging":
            without_use.append("scaling_coefficient")
        if not MERGING_METHODS[self.base.method].trims:
            without_use.append("param_value_mask_rate")
        for name in without_use:
            if name in self.searched:
                raise UserError(f"--{name}: its values are the same merge ({self.base.method}); leave it out")
        replace(self.base, mixup=None).check(self.number_of_models)

    def merge(self, weights: tuple[float, ...] | None, options: Mapping[str, float] | None = None) -> MergeParameters:
        """The merge at these ratios (None: without M3) and at these values of options, plain ones for those not given.

        Its parameters are those that the main job has for the same merge: a seed that nothing is drawn from is 0.
        """
        values = {name: getattr(self, name).plain_choice for name in OPTIONS} | dict(options or {})
        mask = self.base.mask
        parameters = replace(
            self.base,
            scaling_coefficient=values["scaling_coefficient"],
            param_value_mask_rate=values["param_value_mask_rate"],
            mask=None if mask is None else replace(mask, weight_mask_rate=values["weight_mask_rate"]),
            mixup=None if weights is None else Mixup(weights),
        )
        return parameters if parameters.uses_seed else replace(parameters, seed=0)


def option_value(candidate: Candidate, name: str) -> float | None:
    """What a candidate has of an option of `OPTIONS`; None where it has none of it."""
    if name == "alpha":
        return candidate.alpha
    if name == "weight_mask_rate":
        return None if candidate.parameters.mask is None else candidate.parameters.mask.weight_mask_rate
    return getattr(candidate.parameters, name)


def references(space: SearchSpace, roles: Sequence[str]) -> list[Candidate]:
    """What the draws are compared with: equal ratios; the method without M3, where that is another merge (task
    arithmetic adds whole task vectors up); and the fine-tune of each role alone.

    A searched option has its first listed value there, or the middle of its range.
    """
    found = [Candidate("equal ratios", "equal", space.merge(_equal_weights(len(roles))))]
    if space.base.method == "task_arithmetic":
        found.append(Candidate("without M3", "plain", space.merge(None)))
    for i, role in enumerate(roles):
        only_this = tuple(float(model == i) for model in range(len(roles)))
        parameters = MergeParameters("average_merging", mixup=Mixup(only_this), dtype=space.base.dtype)
        found.append(Candidate(alone(role), "finetuned", parameters))
    return found


def alone(role: str) -> str:
    """The name of the candidate that is the fine-tune of this role alone."""
    return f"{role} alone"


def _equal_weights(number_of_models: int) -> tuple[float, ...]:
    share = 1 / number_of_models
    return two_model_weights(share) if number_of_models == 2 else (share,) * number_of_models
