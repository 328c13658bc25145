"""Which merge each draw of a search is: drawn as M3 draws, on a grid, quasi-random, or by what is known so far.

Each way maps the number of a draw to ratios and to values of the searched options. All but `optimise` do so without
looking at scores, so that any process can propose any draw.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from model_merging_methods.mixup import draw_interpolation_weights, two_model_weights
from scripts.mixup_search.candidate import Candidate
from scripts.mixup_search.search_space import SearchSpace, option_value
from utils.errors import UserError

Known = Sequence[tuple[Candidate, float]]
Draw = tuple[tuple[float, ...], dict[str, float]]  # ratios, and values of the searched options
# What Optuna's TPE draws at random before it models what is known, unless that were more than half of the search.
_RANDOM_AT_FIRST = 10


@dataclass(frozen=True)
class Proposals:
    """The draws of a search: `num_draws` of them, and on a grid so many ratios for each combination of the listed
    options (`total` counts all)."""

    space: SearchSpace
    draw_by: str
    num_draws: int
    seed: int

    def check(self) -> None:
        """Raise UserError for a space that cannot be drawn from in this way."""
        if self.draw_by != "mixup" and "alpha" in self.space.searched:
            raise UserError(f"--alpha: has no use with --draw_by {self.draw_by}, which draws no Beta; leave it out")
        if self.draw_by != "grid":
            return
        for name, values in self.space.searched.items():
            if values.is_range:
                raise UserError(f"--{name}: a grid takes no range; list the numbers, or choose another --draw_by")
        if self.num_draws < self.space.number_of_models:
            raise UserError(
                f"--num_draws {self.num_draws}: a grid that includes each model alone "
                f"has {self.space.number_of_models} ratios or more"
            )

    @property
    def total(self) -> int:
        return len(_grid(self)) if self.draw_by == "grid" else self.num_draws

    def propose(self, number: int, known: Known = ()) -> Candidate:
        """The merge that is draw `number` (from 0). `known`: candidates with what is to be maximised; only `optimise`
        looks at it, and proposes the same for the same of it."""
        weights, options = DRAW_BY[self.draw_by](self, number, known)
        alpha = options.get("alpha", self.space.alpha.plain_choice) if self.draw_by == "mixup" else None
        return Candidate(f"draw {number}", "draw", self.space.merge(weights, options), alpha)


def _drawn(proposals: Proposals, number: int, known: Known) -> Draw:
    """Ratios ~ Beta or Dirichlet(α), those of the main job's `--mixup --seed seed+number`. Listed options go through
    all their combinations in turn; ranges are uniform."""
    searched = proposals.space.searched
    generator = np.random.default_rng((proposals.seed, number))
    options, turn = {}, number
    for name, values in searched.items():
        if values.is_range:
            options[name] = values.at(float(generator.random()))
        else:
            turn, place = divmod(turn, len(values.numbers))
            options[name] = values.numbers[place]
    alpha = options.get("alpha", proposals.space.alpha.plain_choice)
    weights = draw_interpolation_weights(alpha, proposals.space.number_of_models, proposals.seed + number)
    return weights, options


def _from_grid(proposals: Proposals, number: int, known: Known) -> Draw:
    return _grid(proposals)[number]


def _grid(proposals: Proposals) -> list[Draw]:
    """All ratios of a lattice for the first combination of the listed options, then for the next."""
    searched = proposals.space.searched
    combinations = product(*(values.numbers for values in searched.values()))
    ratios = even_ratios(proposals.space.number_of_models, proposals.num_draws)
    return [(weights, dict(zip(searched, chosen, strict=True))) for chosen in combinations for weights in ratios]


def even_ratios(number_of_models: int, largest_number: int) -> list[tuple[float, ...]]:
    """The finest even lattice on the simplex, each model alone included, of so many points at most.

    For two models λ = 0, 1/m, …, 1 with m + 1 = largest_number.
    """
    steps = 1
    while math.comb(steps + number_of_models, number_of_models - 1) <= largest_number:
        steps += 1
    if number_of_models == 2:
        return [two_model_weights(i / steps) for i in range(steps + 1)]
    counts = product(range(steps + 1), repeat=number_of_models)
    return [tuple(count / steps for count in point) for point in counts if sum(point) == steps]


def _quasi_random(proposals: Proposals, number: int, known: Known) -> Draw:
    """A point of Sobol's sequence, scrambled by the seed, in the cube of ratios and searched options."""
    from scipy.stats import qmc  # takes half a second, which the other ways do without

    searched = proposals.space.searched
    number_of_ratios = proposals.space.number_of_models - 1
    sequence = qmc.Sobol(number_of_ratios + len(searched), rng=proposals.seed)
    if number > 0:  # SciPy stumbles over forwarding by none
        sequence.fast_forward(number)
    point = [float(share) for share in sequence.random(1)[0]]
    options = {
        name: values.at(share) for (name, values), share in zip(searched.items(), point[number_of_ratios:], strict=True)
    }
    return ratios_at(point[:number_of_ratios]), options


def _optimised(proposals: Proposals, number: int, known: Known) -> Draw:
    """What Optuna's tree-structured Parzen estimator asks for next, given the draws and equal ratios that are known."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    searched = proposals.space.searched
    number_of_ratios = proposals.space.number_of_models - 1
    shares = [f"share {i}" for i in range(number_of_ratios)]
    distributions = dict.fromkeys(shares, optuna.distributions.FloatDistribution(0, 1))
    for name, values in searched.items():
        distributions[name] = (
            optuna.distributions.FloatDistribution(*values.numbers)
            if values.is_range
            else optuna.distributions.CategoricalDistribution(values.numbers)
        )
    sampler = optuna.samplers.TPESampler(
        seed=int(np.random.SeedSequence((proposals.seed, number)).generate_state(1)[0]),
        n_startup_trials=min(_RANDOM_AT_FIRST, proposals.num_draws // 2),
    )
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for candidate, value in known:
        if candidate.kind in ("draw", "equal"):
            place = dict(zip(shares, shares_of(candidate.parameters.mixup.weights), strict=True))
            place |= {name: option_value(candidate, name) for name in searched}
            study.add_trial(optuna.trial.create_trial(params=place, distributions=distributions, value=value))
    asked: Mapping[str, float] = study.ask(distributions).params
    return ratios_at([asked[name] for name in shares]), {name: asked[name] for name in searched}


def ratios_at(shares: Sequence[float]) -> tuple[float, ...]:
    """The ratios of K models at a point of the (K − 1)-dimensional unit cube; uniform points give uniform ratios.

    Each model in turn takes a part of what is left: the n models after it are left (1 − share)^(1/n) of that.
    """
    if len(shares) == 1:
        return two_model_weights(shares[0])
    left, ratios = 1.0, []
    for i, share in enumerate(shares):
        after = left * (1 - share) ** (1 / (len(shares) - i))
        ratios.append(left - after)
        left = after
    return (*ratios, left)


def shares_of(ratios: Sequence[float]) -> list[float]:
    """The point of the unit cube at which `ratios_at` gives these."""
    if len(ratios) == 2:
        return [ratios[0]]
    left, shares = 1.0, []
    for i, ratio in enumerate(ratios[:-1]):
        after = max(left - ratio, 0.0)
        shares.append(1 - (after / left) ** (len(ratios) - 1 - i) if left > 0 else 0.0)
        left = after
    return shares


DRAW_BY = {"mixup": _drawn, "grid": _from_grid, "sobol": _quasi_random, "optimise": _optimised}
