"""Search space: the merges that a search may propose, the references, and the merge of each draw."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from itertools import product
from typing import Any, Literal

import numpy as np

from model_merging_methods.merge_parameters import MergeParameters, parameters_from_fields, parameters_of
from model_merging_methods.method import About, Option
from model_merging_methods.mixup import Mixup, draw_ratios, ratios_by_layer, two_model_ratios
from utils.errors import UserError

ALPHA = Option("alpha", float, 0.5, About("α of the distribution that draws the ratios"), is_per_model=False)
# Optuna's TPE draws this many at random before it models the scores, or half of the draws if that is fewer.
_RANDOM_DRAWS = 10
# The program that computes Sobol's sequence. Each scrambles it differently, so a search must not mix two.
SOBOL_GENERATOR, EARLIER_SOBOL_GENERATOR = "torch", "scipy"


# Before the number of a point of the first model's ratio, from the first layer to the last: a varied option.
POINT = "ratio_at_point_"


def of_model(option: str, model: int) -> str:
    """The name in a search of one model's number of an option, such as `weight[0]`."""
    return f"{option}[{model}]"


def option_and_model(name: str) -> tuple[str, int | None]:
    """The option of a name in a search, and the model whose number it is; None for one number for all models."""
    option, _, model = name.removesuffix("]").partition("[")
    return option, int(model) if model else None


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
        """The value of `alpha`, of an option of the method or mask for all models or for one, or of a point of the
        ratio over the layers; None if the merge does not have it."""
        if name.startswith(POINT):
            by_layer, place = self.parameters.mixup and self.parameters.mixup.by_layer, int(name.removeprefix(POINT))
            return by_layer[place] if by_layer else None
        option, model = option_and_model(name)
        value = self.alpha if name == "alpha" else self.parameters.all_values.get(option)
        return value if model is None or not isinstance(value, tuple) else value[model]


Scored = Sequence[tuple[Candidate, float]]  # candidates with the value to maximise
Draw = tuple[tuple[float, ...] | None, dict[str, float]]  # ratios, and values of the varied options


@dataclass(frozen=True)
class Values:
    """The values of an option: the listed numbers or, if `is_range`, all between two numbers. Whole numbers for an
    option of whole numbers."""

    numbers: tuple[float, ...]
    is_range: bool = False

    @property
    def are_whole(self) -> bool:
        return all(isinstance(number, int) for number in self.numbers)

    @property
    def plain_choice(self) -> float:
        """The value for merges that do not draw it: the first listed number, or the middle of the range."""
        if not self.is_range:
            return self.numbers[0]
        return sum(self.numbers) // 2 if self.are_whole else sum(self.numbers) / 2

    def at(self, share: float) -> float:
        """The value at a `share` from 0 to 1, of which listed numbers have equal parts."""
        if self.is_range:
            low, high = self.numbers
            return min(low + (int(share * (high - low + 1)) if self.are_whole else share * (high - low)), high)
        return self.numbers[min(int(share * len(self.numbers)), len(self.numbers) - 1)]


def parse_values(option: Option, words: Sequence[str], role: str = "") -> Values:
    """Parse the values of an option: `0.5`, `0.2 0.5` or `0.5:1.5`. Raises UserError for anything else, and for values
    outside the option's range. `role`: the model whose values they are, if not all models'."""
    given = " ".join([f"--{option.name}", *(f"{role}={word}" if role else word for word in words)])
    is_range = any(":" in word for word in words)
    if is_range and len(words) > 1:
        raise UserError(f"{given}: give either numbers or one range low:high")
    try:
        numbers = tuple(option.type(number) for word in words for number in word.split(":"))
    except ValueError:
        kind = "whole numbers" if option.type is int else "numbers"
        raise UserError(f"{given}: give {kind}, or a range low:high") from None
    low, high = option.about.low, option.about.high
    faults = {
        "give finite numbers": not all(map(math.isfinite, numbers)),
        f"give {option.range}, or several": not all(low <= number <= high for number in numbers),
        "a range is low:high, with low below high": is_range and not (len(numbers) == 2 and numbers[0] < numbers[1]),
        "a number is given twice; give each once": not is_range and len(set(numbers)) < len(numbers),
    }
    for fault, is_there in faults.items():
        if is_there:
            raise UserError(f"{given}: {fault}")
    return Values(numbers, is_range)


def drawing_order(parameters: MergeParameters, names: Iterable[str]) -> list[str]:
    """The order in which varied options are drawn: α, the scaling coefficient, then the mask's options and the method's
    others, as they are declared."""
    mask = parameters.mask.values if parameters.mask else ()
    known = dict.fromkeys(("alpha", "scaling_coefficient", *mask, *parameters.values))
    place = {name: number for number, name in enumerate(known)}
    return sorted(names, key=lambda name: place.get(option_and_model(name)[0], len(known)))


@dataclass(frozen=True)
class SearchSpace:
    """The merges that a search may propose: `base`, a merge of `number_of_models` models, at any ratios if its method
    takes them, and at any values of `varied`: options of the method and the mask, for all models or as `of_model` names
    them, and `alpha`. `base` has the plain choice of each varied option, and no ratios. `without_mixup`: no merge has
    ratios, and a single one may be the whole space. With options named `POINT`0, 1, …, the ratio of two models changes
    over the layers, and they are its points.
    """

    number_of_models: int
    base: MergeParameters
    alpha: Values
    options: Mapping[str, Values]
    without_mixup: bool = False

    @property
    def has_ratios(self) -> bool:
        is_drawn = not self.without_mixup and not self.points
        return is_drawn and self.base.declared.takes_ratios and self.number_of_models > 1

    @property
    def points(self) -> list[str]:
        """The options that are points of the ratio over the layers."""
        return [name for name in self.options if name.startswith(POINT)]

    @property
    def number_of_shares(self) -> int:
        """The number of coordinates of the ratios in the unit cube."""
        return self.number_of_models - 1 if self.has_ratios else 0

    @property
    def varied(self) -> dict[str, Values]:
        """The options that have more than one value, in the order in which they are drawn."""
        values = {"alpha": self.alpha, **self.options}
        several = [name for name in values if len(values[name].numbers) > 1]
        return {name: values[name] for name in drawing_order(self.base, several)}

    def check(self) -> None:
        """Raise UserError for a varied option that has no effect, for a base that cannot be merged, and for a space of
        one merge."""
        for name in self.options:
            option, _ = option_and_model(name)
            if option not in self.base.all_values and name not in self.points:
                raise UserError(f"--{option} has no effect on this merge ({self.base.method}); remove it")
            if option == "weight" and (self.has_ratios or self.points):
                raise UserError("--weight has no effect with M3's ratios, which replace it; remove it")
        if self.points:
            self.merge(None).check(self.number_of_models)
        self.base.check(self.number_of_models)
        if not self.has_ratios and not self.varied and not self.without_mixup:
            raise UserError(
                f"{self.base.method}: takes no ratios to search; give several values or a range of an option, such as "
                f"--{next(iter(_numeric_options(self.base)), 'scaling_coefficient')} LOW:HIGH"
            )

    def merge(self, ratios: tuple[float, ...] | None, options: Mapping[str, float] | None = None) -> MergeParameters:
        """The merge at these ratios (None: without M3) and option values; options that are not given have their plain
        choice. The parameters equal those of the main job: the seed is 0 if nothing is drawn from it."""
        chosen = dict.fromkeys(self.points, 0.5)  # equal ratios in every layer
        chosen |= {name: value for name, value in (options or {}).items() if name != "alpha"}
        mixup = None if ratios is None else Mixup(ratios)
        if self.points:
            mixup = ratios_by_layer([chosen.pop(name) for name in self.points], self.number_of_models)
        parameters = replace(_with_values(self.base, chosen), mixup=mixup)
        return parameters if parameters.uses_seed else replace(parameters, seed=0)

    def to_fields(self) -> dict[str, Any]:
        """The space as the identity of a search stores it."""
        values = {"alpha": self.alpha, **self.options}
        return {
            "number_of_models": self.number_of_models,
            "base": self.base.to_fields(),
            "values": {
                name: {"numbers": list(values[name].numbers), "is_range": values[name].is_range}
                for name in drawing_order(self.base, values)
            },
            **({"without_mixup": True} if self.without_mixup else {}),  # earlier versions never wrote it
        }


def _with_values(parameters: MergeParameters, values: Mapping[str, float]) -> MergeParameters:
    """The parameters with these values, by name in a search."""
    for name, value in values.items():
        option, model = option_and_model(name)
        if model is not None:
            numbers = parameters.all_values[option]
            value = (*numbers[:model], value, *numbers[model + 1 :])
        parameters = parameters.with_options(**{option: value})
    return parameters


def _numeric_options(parameters: MergeParameters) -> list[str]:
    declared = {**parameters.declared.options, **(parameters.mask.declared.options if parameters.mask else {})}
    return [name for name, option in declared.items() if option.type in (int, float)]


def space_from_fields(fields: Mapping[str, Any]) -> SearchSpace:
    """The space from a search's identity, of any version. Raises what `parameters_from_fields` raises for others."""
    base = parameters_from_fields(fields["base"])
    values = fields.get("values")
    if values is None:  # an identity from before methods had their own options
        values = {name: value for name, value in fields.items() if name not in ("number_of_models", "base")}
        # It has the single values of other options too.
        values = {name: value for name, value in values.items() if name == "alpha" or len(value["numbers"]) > 1}
    parsed = {name: Values(tuple(value["numbers"]), value["is_range"]) for name, value in values.items()}
    without_mixup = fields.get("without_mixup", False)
    return SearchSpace(fields["number_of_models"], base, parsed.pop("alpha"), parsed, without_mixup)


def references(space: SearchSpace, roles: Sequence[str]) -> list[Candidate]:
    """The candidates that draws are compared with; the first is the one that the choice is tested against.

    Equal ratios, and for task arithmetic the method without M3, which adds whole task vectors. Without ratios: the
    plain choice, and the average of the models. Then each fine-tune alone. A varied option has its plain
    choice in these merges.
    """
    number = len(roles)
    equal = two_model_ratios(0.5) if number == 2 else (1 / number,) * number
    if space.has_ratios:
        candidates = [Candidate(EQUAL_RATIOS, "equal", space.merge(equal))]
        if space.base.method == "task_arithmetic":
            candidates.append(Candidate("without M3", "plain", space.merge(None)))
    else:
        candidates = [Candidate(PLAIN_CHOICE, "plain", space.merge(None))]
        if number > 1:
            average = parameters_of("average_merging", mixup=Mixup(equal), dtype=space.base.dtype)
            candidates.append(Candidate("average", "equal", average))
    for i, role in enumerate(roles):
        candidates.append(Candidate(alone(role), "finetuned", _only(i, number, space.base.dtype)))
    return candidates


EQUAL_RATIOS, PLAIN_CHOICE = "equal ratios", "plain choice"


def _only(model: int, number: int, dtype: str | None) -> MergeParameters:
    """The merge that is one fine-tune alone."""
    if number == 1:
        return parameters_of("linear", dtype=dtype)
    ratios = tuple(float(other == model) for other in range(number))
    return parameters_of("average_merging", mixup=Mixup(ratios), dtype=dtype)


def alone(role: str) -> str:
    """The name of the candidate that is the fine-tune of this role alone."""
    return f"{role} alone"


@dataclass(frozen=True)
class Proposals:
    """The draws of a search, by number. On a grid `num_draws` is the number of ratios for each combination of the
    listed options; without ratios each combination is one draw. All kinds except `optimise` propose a draw without
    looking at scores."""

    space: SearchSpace
    draw_by: str
    num_draws: int
    seed: int

    def check(self) -> None:
        """Raise UserError for a space that has no grid, for a single merge that is to be drawn from a space, and for
        Optuna if it is needed and not installed."""
        if self.draw_by in ("sobol", "optimise") and not self.space.has_ratios and not self.space.varied:
            raise UserError(f"--draw_by {self.draw_by}: there is one merge, and nothing to draw; remove it")
        if self.draw_by == "optimise" and find_spec("optuna") is None:
            raise UserError("--draw_by optimise: optuna is not installed; run `pip install -e .[search]`")
        if self.draw_by != "grid":
            return
        for values in self.space.varied.values():
            if values.is_range:
                low, high = values.numbers
                raise UserError(
                    f"--draw_by grid: takes no range, such as {low:g}:{high:g}; list the numbers, or choose another "
                    "--draw_by"
                )
        if self.space.has_ratios and self.num_draws < self.space.number_of_models:
            raise UserError(
                f"--num_draws {self.num_draws}: a grid has at least {self.space.number_of_models} ratios, each model "
                "alone; give more draws"
            )

    def identity(self) -> dict[str, Any]:
        """The fields of a search's identity that say how it draws."""
        # Files of earlier versions lack the generator.
        generator = {"sobol_generator": SOBOL_GENERATOR} if self.draw_by == "sobol" else {}
        baseline = {} if self.space.has_ratios else {"baseline": PLAIN_CHOICE}
        number = self.num_draws if self.draw_by == "grid" else self.total
        return {"draw_by": self.draw_by, "num_draws": number, "seed": self.seed, **generator, **baseline}

    @property
    def total(self) -> int:
        """The number of draws; listed options that are drawn without ratios do not repeat."""
        if self.draw_by == "grid":
            return len(_grid(self))
        values = self.space.varied.values()
        if self.draw_by == "mixup" and not self.space.has_ratios and not any(one.is_range for one in values):
            return min(self.num_draws, math.prod(len(one.numbers) for one in values))
        return self.num_draws

    def propose(self, number: int, scored: Scored = ()) -> Candidate:
        """The merge that is draw `number`, counted from 0. The same `scored` always gives the same merge."""
        ratios, options = DRAW_BY[self.draw_by](self, number, scored)
        has_alpha = self.draw_by == "mixup" and self.space.has_ratios
        alpha = options.get("alpha", self.space.alpha.plain_choice) if has_alpha else None
        return Candidate(f"draw {number}", "draw", self.space.merge(ratios, options), alpha)


def number_of_draws(identity: Mapping[str, Any]) -> int:
    """The number of draws of the whole search that has this identity."""
    space = space_from_fields(identity["space"])
    return Proposals(space, identity["draw_by"], identity["num_draws"], identity["seed"]).total


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
    if not proposals.space.has_ratios:
        return None, options
    alpha = options.get("alpha", proposals.space.alpha.plain_choice)
    return draw_ratios(alpha, proposals.space.number_of_models, proposals.seed + number), options


def _grid(proposals: Proposals) -> list[Draw]:
    """All ratios of a lattice for the first combination of the listed options, then for the next."""
    varied = proposals.space.varied
    combinations = product(*(values.numbers for values in varied.values()))
    has_ratios = proposals.space.has_ratios
    ratios = even_ratios(proposals.space.number_of_models, proposals.num_draws) if has_ratios else [None]
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
    number_of_shares = proposals.space.number_of_shares
    dimension, seed = number_of_shares + len(varied), proposals.seed % 2**64  # torch takes no larger seed
    sequence = torch.quasirandom.SobolEngine(dimension, scramble=True, seed=seed).fast_forward(number)
    point = sequence.draw(1, dtype=torch.float64)[0].tolist()
    options = {name: varied[name].at(share) for name, share in zip(varied, point[number_of_shares:], strict=True)}
    return ratios_at(point[:number_of_shares]) if number_of_shares else None, options


def _optimised(proposals: Proposals, number: int, scored: Scored) -> Draw:
    """The next point of Optuna's tree-structured Parzen estimator, given the scored draws and references."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    varied = proposals.space.varied
    shares = [f"share {i}" for i in range(proposals.space.number_of_shares)]
    distributions = dict.fromkeys(shares, optuna.distributions.FloatDistribution(0, 1))
    distributions |= {name: _distribution(values) for name, values in varied.items()}
    sampler = optuna.samplers.TPESampler(
        seed=int(np.random.SeedSequence((proposals.seed, number)).generate_state(1)[0]),
        n_startup_trials=min(_RANDOM_DRAWS, proposals.num_draws // 2),
    )
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for candidate, value in scored:
        point = {name: candidate.option(name) for name in varied}
        has_ratios = proposals.space.has_ratios or bool(proposals.space.points)
        is_in_space = (candidate.ratios is not None) is has_ratios and None not in point.values()
        if is_in_space and candidate.kind != "finetuned":
            point |= dict(zip(shares, shares_of(candidate.ratios), strict=True)) if shares else {}
            study.add_trial(optuna.trial.create_trial(params=point, distributions=distributions, value=value))
    proposed: Mapping[str, float] = study.ask(distributions).params
    ratios = ratios_at([proposed[name] for name in shares]) if shares else None
    return ratios, {name: proposed[name] for name in varied}


def _distribution(values: Values):
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if not values.is_range:
        return CategoricalDistribution(values.numbers)
    return (IntDistribution if values.are_whole else FloatDistribution)(*values.numbers)


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
