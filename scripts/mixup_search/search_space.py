"""Search space: the merges that a search may propose, the references, and the merge of each draw."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from itertools import product
from typing import Any, Literal

import numpy as np

from model_merging_methods.merge_request import MergeParameters, Mixup, draw_ratios, two_model_ratios
from model_merging_methods.merging_methods import MERGING_METHODS
from utils.errors import UserError

# The options that a search may vary beside the ratios, in the order in which they are drawn.
OPTIONS = ("alpha", "scaling_coefficient", "weight_mask_rate", "param_value_mask_rate")
_RATES = OPTIONS[2:]
# Optuna's TPE draws this many at random before it models the scores, or half of the draws if that is fewer.
_RANDOM_DRAWS = 10
# The program that computes Sobol's sequence. Each scrambles it differently, so a search must not mix two.
SOBOL_GENERATOR, EARLIER_SOBOL_GENERATOR = "torch", "scipy"


@dataclass(frozen=True)
class Candidate:
    """One merge of a search.

    `kind`: a draw; at equal ratios; plain, without M3; or a fine-tuned model alone, as a merge at ratio 1. `name` is
    unique in a search (`draw 7`, `equal ratios`, `without M3`, `math alone`). `parameters` hold the ratios as given
    numbers, so that they repeat the merge; `alpha` is what the ratios were drawn with, if they were.
    """

    name: str
    kind: Literal["draw", "equal", "plain", "finetuned"]
    parameters: MergeParameters
    alpha: float | None = None

    @property
    def ratios(self) -> tuple[float, ...] | None:
        return None if self.parameters.mixup is None else self.parameters.mixup.ratios

    def option(self, name: str) -> float | None:
        """The value of an option of `OPTIONS`; None if the merge does not have it."""
        if name == "alpha":
            return self.alpha
        return getattr(self.parameters.mask if name == "weight_mask_rate" else self.parameters, name, None)


Scored = Sequence[tuple[Candidate, float]]  # candidates with the value to maximise
Draw = tuple[tuple[float, ...], dict[str, float]]  # ratios, and values of the varied options


@dataclass(frozen=True)
class Values:
    """The values of an option: the listed numbers or, if `is_range`, all between two numbers."""

    numbers: tuple[float, ...]
    is_range: bool = False

    @property
    def plain_choice(self) -> float:
        """The value for merges that do not draw it: the first listed number, or the middle of the range."""
        return sum(self.numbers) / 2 if self.is_range else self.numbers[0]

    def at(self, share: float) -> float:
        """The value at a `share` from 0 to 1, of which listed numbers have equal parts."""
        if self.is_range:
            low, high = self.numbers
            return min(low + share * (high - low), high)
        return self.numbers[min(int(share * len(self.numbers)), len(self.numbers) - 1)]


def parse_values(option: str, words: Sequence[str]) -> Values:
    """Parse the words of an option of `OPTIONS`: `0.5`, `0.2 0.5` or `0.5:1.5`. Raises UserError for anything else, and
    for rates outside [0, 1]."""
    given = f"--{option} {' '.join(words)}"
    is_range = any(":" in word for word in words)
    if is_range and len(words) > 1:
        raise UserError(f"{given}: give either numbers or one range low:high")
    try:
        numbers = tuple(float(number) for word in words for number in word.split(":"))
    except ValueError:
        raise UserError(f"{given}: give numbers, or a range low:high") from None
    faults = {
        "give finite numbers": not all(map(math.isfinite, numbers)),
        "a rate must be between 0 and 1": option in _RATES and not all(0 <= number <= 1 for number in numbers),
        "a range is low:high, with low below high": is_range and not (len(numbers) == 2 and numbers[0] < numbers[1]),
        "a number is given twice; give each once": not is_range and len(set(numbers)) < len(numbers),
    }
    for fault, is_there in faults.items():
        if is_there:
            raise UserError(f"{given}: {fault}")
    return Values(numbers, is_range)


@dataclass(frozen=True)
class SearchSpace:
    """The merges that a search may propose: `base`, a merge of `number_of_models` models, at any ratios and at any
    values of the options. The values of `base` itself do not count."""

    number_of_models: int
    base: MergeParameters
    alpha: Values
    scaling_coefficient: Values
    weight_mask_rate: Values
    param_value_mask_rate: Values

    @property
    def varied(self) -> dict[str, Values]:
        """The options that have more than one value."""
        return {name: getattr(self, name) for name in OPTIONS if len(getattr(self, name).numbers) > 1}

    def check(self) -> None:
        """Raise UserError for a varied option that has no effect, and for a base that cannot be merged."""
        without_effect = {
            "weight_mask_rate": self.base.mask is None,
            "scaling_coefficient": self.base.method == "average_merging",
            "param_value_mask_rate": not MERGING_METHODS[self.base.method].has_trimming,
        }
        for name in self.varied:
            if without_effect.get(name):
                raise UserError(f"--{name} has no effect on this merge ({self.base.method}); remove it")
        replace(self.base, mixup=None).check(self.number_of_models)

    def merge(self, ratios: tuple[float, ...] | None, options: Mapping[str, float] | None = None) -> MergeParameters:
        """The merge at these ratios (None: without M3) and option values; options that are not given have their plain
        choice. The parameters equal those of the main job: the seed is 0 if nothing is drawn from it."""
        values = {name: getattr(self, name).plain_choice for name in OPTIONS} | dict(options or {})
        mask = self.base.mask
        parameters = replace(
            self.base,
            scaling_coefficient=values["scaling_coefficient"],
            param_value_mask_rate=values["param_value_mask_rate"],
            mask=None if mask is None else replace(mask, weight_mask_rate=values["weight_mask_rate"]),
            mixup=None if ratios is None else Mixup(ratios),
        )
        return parameters if parameters.uses_seed else replace(parameters, seed=0)


def references(space: SearchSpace, roles: Sequence[str]) -> list[Candidate]:
    """The candidates that draws are compared with: equal ratios; for task arithmetic, the method without M3, which adds
    whole task vectors; and each fine-tune alone. A varied option has its plain choice there."""
    number = len(roles)
    equal = two_model_ratios(0.5) if number == 2 else (1 / number,) * number
    candidates = [Candidate("equal ratios", "equal", space.merge(equal))]
    if space.base.method == "task_arithmetic":
        candidates.append(Candidate("without M3", "plain", space.merge(None)))
    for i, role in enumerate(roles):
        only_this = tuple(float(model == i) for model in range(number))
        parameters = MergeParameters("average_merging", mixup=Mixup(only_this), dtype=space.base.dtype)
        candidates.append(Candidate(alone(role), "finetuned", parameters))
    return candidates


def alone(role: str) -> str:
    """The name of the candidate that is the fine-tune of this role alone."""
    return f"{role} alone"


@dataclass(frozen=True)
class Proposals:
    """The draws of a search, by number. On a grid `num_draws` is the number of ratios for each combination of the
    listed options. All kinds except `optimise` propose a draw without looking at scores."""

    space: SearchSpace
    draw_by: str
    num_draws: int
    seed: int

    def check(self) -> None:
        """Raise UserError for a space that has no grid, and for Optuna if it is needed and not installed."""
        if self.draw_by == "optimise" and find_spec("optuna") is None:
            raise UserError("--draw_by optimise: optuna is not installed; run `pip install -e .[search]`")
        if self.draw_by != "grid":
            return
        for name, values in self.space.varied.items():
            if values.is_range:
                raise UserError(f"--{name}: a grid takes no range; list the numbers, or choose another --draw_by")
        if self.num_draws < self.space.number_of_models:
            raise UserError(
                f"--num_draws {self.num_draws}: a grid has at least {self.space.number_of_models} ratios, each model "
                "alone; give more draws"
            )

    def identity(self) -> dict[str, Any]:
        """The fields of a search's identity that say how it draws."""
        # Files of earlier versions lack the generator.
        generator = {"sobol_generator": SOBOL_GENERATOR} if self.draw_by == "sobol" else {}
        return {"draw_by": self.draw_by, "num_draws": self.num_draws, "seed": self.seed, **generator}

    @property
    def total(self) -> int:
        return len(_grid(self)) if self.draw_by == "grid" else self.num_draws

    def propose(self, number: int, scored: Scored = ()) -> Candidate:
        """The merge that is draw `number`, counted from 0. The same `scored` always gives the same merge."""
        ratios, options = DRAW_BY[self.draw_by](self, number, scored)
        alpha = options.get("alpha", self.space.alpha.plain_choice) if self.draw_by == "mixup" else None
        return Candidate(f"draw {number}", "draw", self.space.merge(ratios, options), alpha)


def _drawn(proposals: Proposals, number: int, scored: Scored) -> Draw:
    """Ratios ~ Beta or Dirichlet(α), those of the main job's `--mixup --seed seed+number`. Listed options cycle
    through all combinations; ranges are uniform."""
    generator = np.random.default_rng((proposals.seed, number))
    options, turn = {}, number
    for name, values in proposals.space.varied.items():
        if values.is_range:
            options[name] = values.at(float(generator.random()))
        else:
            turn, place = divmod(turn, len(values.numbers))
            options[name] = values.numbers[place]
    alpha = options.get("alpha", proposals.space.alpha.plain_choice)
    return draw_ratios(alpha, proposals.space.number_of_models, proposals.seed + number), options


def _grid(proposals: Proposals) -> list[Draw]:
    """All ratios of a lattice for the first combination of the listed options, then for the next."""
    varied = proposals.space.varied
    combinations = product(*(values.numbers for values in varied.values()))
    ratios = even_ratios(proposals.space.number_of_models, proposals.num_draws)
    return [(point, dict(zip(varied, chosen, strict=True))) for chosen in combinations for point in ratios]


def even_ratios(number_of_models: int, largest_number: int) -> list[tuple[float, ...]]:
    """The finest even lattice on the simplex with at most `largest_number` points, each model alone included.

    For two models λ = 0, 1/m, …, 1 with m + 1 = largest_number.
    """
    steps = 1
    while math.comb(steps + number_of_models, number_of_models - 1) <= largest_number:
        steps += 1
    if number_of_models == 2:
        return [two_model_ratios(i / steps) for i in range(steps + 1)]
    counts = product(range(steps + 1), repeat=number_of_models)
    return [tuple(count / steps for count in point) for point in counts if sum(point) == steps]


def _quasi_random(proposals: Proposals, number: int, scored: Scored) -> Draw:
    """A point of Sobol's sequence, scrambled by the seed, in the cube of ratios and varied options."""
    import torch

    varied = proposals.space.varied
    number_of_shares = proposals.space.number_of_models - 1
    dimension, seed = number_of_shares + len(varied), proposals.seed % 2**64  # torch takes no larger seed
    sequence = torch.quasirandom.SobolEngine(dimension, scramble=True, seed=seed).fast_forward(number)
    point = sequence.draw(1, dtype=torch.float64)[0].tolist()
    options = {name: varied[name].at(share) for name, share in zip(varied, point[number_of_shares:], strict=True)}
    return ratios_at(point[:number_of_shares]), options


def _optimised(proposals: Proposals, number: int, scored: Scored) -> Draw:
    """The next point of Optuna's tree-structured Parzen estimator, given the scored draws and equal ratios."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    varied = proposals.space.varied
    shares = [f"share {i}" for i in range(proposals.space.number_of_models - 1)]
    distributions = dict.fromkeys(shares, optuna.distributions.FloatDistribution(0, 1))
    for name, values in varied.items():
        distributions[name] = (
            optuna.distributions.FloatDistribution(*values.numbers)
            if values.is_range
            else optuna.distributions.CategoricalDistribution(values.numbers)
        )
    sampler = optuna.samplers.TPESampler(
        seed=int(np.random.SeedSequence((proposals.seed, number)).generate_state(1)[0]),
        n_startup_trials=min(_RANDOM_DRAWS, proposals.num_draws // 2),
    )
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for candidate, value in scored:
        if candidate.kind in ("draw", "equal"):
            point = dict(zip(shares, shares_of(candidate.ratios), strict=True))
            point |= {name: candidate.option(name) for name in varied}
            study.add_trial(optuna.trial.create_trial(params=point, distributions=distributions, value=value))
    proposed: Mapping[str, float] = study.ask(distributions).params
    return ratios_at([proposed[name] for name in shares]), {name: proposed[name] for name in varied}


def ratios_at(shares: Sequence[float]) -> tuple[float, ...]:
    """The ratios of K models at a point of the (K − 1)-dimensional unit cube; uniform points give uniform ratios.

    Each model takes a part of the rest: the n models after it share (1 − share)^(1/n) of the rest.
    """
    if len(shares) == 1:
        return two_model_ratios(shares[0])
    left, ratios = 1.0, []
    for i, share in enumerate(shares):
        after = left * (1 - share) ** (1 / (len(shares) - i))
        ratios.append(left - after)
        left = after
    return (*ratios, left)


def shares_of(ratios: Sequence[float]) -> list[float]:
    """The point of the unit cube at which `ratios_at` gives these ratios."""
    if len(ratios) == 2:
        return [ratios[0]]
    left, shares = 1.0, []
    for i, ratio in enumerate(ratios[:-1]):
        after = max(left - ratio, 0.0)
        shares.append(1 - (after / left) ** (len(ratios) - 1 - i) if left > 0 else 0.0)
        left = after
    return shares


DRAW_BY = {
    "mixup": _drawn,
    "grid": lambda proposals, number, scored: _grid(proposals)[number],
    "sobol": _quasi_random,
    "optimise": _optimised,
}
