"""The definition of MergeBench (He et al. 2025, arXiv 2505.10833): models, data sets, methods, and their sizes.

Facts are from the paper's repository, github.com/uiuctml/MergeBench: `scripts/evaluate.sh` (tasks), `scripts/merge.sh`
(methods), `merging/main.py` (hub ids). `TINY` has the same shape with the models and sets of scripts/tiny_zoo.
"""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from scripts.paper_tables.names import Published

INSTRUCTION, MATH, CODING, SAFETY, MULTILINGUAL = "instruction", "math", "coding", "safety", "multilingual"
DOMAINS = (INSTRUCTION, MATH, CODING, SAFETY, MULTILINGUAL)
GENERAL = "general"  # skills of the base that no specialist was trained for; they measure forgetting
# What runs and scores a data set. inference_llms runs all but safety-eval's. Of EvalPlus, whose command users run
# themselves, results are read.
LM_EVAL, PROGRAM, EVALPLUS, SAFETY_EVAL = "lm_eval", "program", "EvalPlus", "safety-eval"
BASELINE = "task_arithmetic"
PUBLISHED = Path(__file__).with_name("published_results.csv")
TINY_ZOO = Path("scripts/tiny_zoo")


@dataclass(frozen=True)
class BenchSet:
    """A data set of one domain, which is one column.

    `tasks`: as `--tasks` names them, without `lm_eval:`; the examples of all of them together are the set. A group of
    the harness means its tasks, whose names begin with the group's. `metric`: the score's name in the record.
    `best`: the largest value of the metric. `lower_is_better`: the table shows 1 − value. `examples`, `scored_tokens`
    and `new_tokens`: the number of examples, and for each how many tokens are read and generated; only time estimates
    use them.
    """

    name: str
    domain: str
    tasks: tuple[str, ...]
    metric: str
    examples: int
    scored_tokens: int
    new_tokens: int = 0
    best: float = 1.0
    lower_is_better: bool = False
    harness: str = LM_EVAL

    @property
    def task_names(self) -> list[str]:
        """The names for `--tasks`."""
        return [f"lm_eval:{task}" if self.harness == LM_EVAL else task for task in self.tasks]


@dataclass(frozen=True)
class Base:
    """A base with the specialists that were tuned from it, by domain. `stored_bytes`: the size of the base's own
    checkpoint, which may be in float32; specialists and merges have 2 bytes for each parameter."""

    name: str
    hub_id: str
    parameters: int
    stored_bytes: int
    specialists: Mapping[str, str]

    @property
    def bytes(self) -> int:
        return 2 * self.parameters


@dataclass(frozen=True)
class BenchMethod:
    """A row: its title and the options of the merge. `reads`: how often the merge reads each checkpoint."""

    title: str
    options: Mapping[str, Any]
    reads: int = 1


@dataclass(frozen=True)
class Suite:
    """What is merged, with which methods, and what is run on it. `task_options`: further options of inference_llms."""

    bases: Sequence[Base]
    data_sets: Sequence[BenchSet]
    methods: Mapping[str, BenchMethod]
    task_options: Mapping[str, Any] = field(default_factory=dict)

    def sets_of(self, domain: str) -> list[BenchSet]:
        return [one for one in self.data_sets if one.domain == domain]

    @property
    def domains(self) -> list[str]:
        """The domains that have specialists."""
        return [domain for domain in DOMAINS if self.sets_of(domain)]


def _base(name: str, organisation: str, parameters: int, stored_in_float32: bool = False) -> Base:
    specialists = {domain: f"MergeBench/{name}_{domain}" for domain in DOMAINS}
    stored = (4 if stored_in_float32 else 2) * parameters
    return Base(name, f"{organisation}/{name}", parameters, stored, specialists)


BASES = (
    _base("Llama-3.2-3B", "meta-llama", 3_212_749_824),
    _base("Llama-3.2-3B-Instruct", "meta-llama", 3_212_749_824),
    _base("Llama-3.1-8B", "meta-llama", 8_030_261_248),
    _base("Llama-3.1-8B-Instruct", "meta-llama", 8_030_261_248),
    _base("gemma-2-2b", "google", 2_614_341_888, stored_in_float32=True),
    _base("gemma-2-2b-it", "google", 2_614_341_888),
    _base("gemma-2-9b", "google", 9_241_705_984, stored_in_float32=True),
    _base("gemma-2-9b-it", "google", 9_241_705_984),
)

LANGUAGES = ("fr", "es", "de", "ru")


def _in_languages(task: str) -> tuple[str, ...]:
    return tuple(f"{task}_{language}" for language in LANGUAGES)


DATA_SETS = (
    BenchSet("IFEval", INSTRUCTION, ("ifeval",), "prompt_level_strict_acc", 541, 50, 500),
    BenchSet("GSM8K", MATH, ("gsm8k_cot",), "exact_match,flexible-extract", 1319, 1000, 120),
    BenchSet("HumanEval+", CODING, ("human_eval",), "pass@1", 164, 200, 200, harness=EVALPLUS),
    BenchSet("MBPP+", CODING, ("mbpp",), "pass@1", 974, 200, 100, harness=EVALPLUS),
    BenchSet("WildGuardTest", SAFETY, ("wildguardtest",), "micro harm (lower)", 749, 100, 256, 1.0, True, SAFETY_EVAL),
    BenchSet("HarmBench", SAFETY, ("harmbench",), "micro ASR (lower)", 320, 100, 256, 1.0, True, SAFETY_EVAL),
    BenchSet("DoAnythingNow", SAFETY, ("do_anything_now",), "macro ASR", 300, 500, 256, 1.0, True, SAFETY_EVAL),
    BenchSet("XSTest", SAFETY, ("xstest",), "overall_accuracy", 450, 50, 256, harness=SAFETY_EVAL),
    BenchSet("M_MMLU", MULTILINGUAL, _in_languages("m_mmlu"), "acc", 52_690, 600),
    BenchSet("M_ARC", MULTILINGUAL, _in_languages("arc"), "acc_norm", 4_677, 220),
    BenchSet("M_HellaSwag", MULTILINGUAL, _in_languages("hellaswag"), "acc_norm", 37_352, 520),
    BenchSet("MMLU", GENERAL, ("mmlu",), "acc", 14_042, 600),
    BenchSet("TriviaQA", GENERAL, ("triviaqa",), "exact_match,remove_whitespace", 17_944, 30, 16),
    BenchSet("SQuADv2", GENERAL, ("squadv2",), "exact", 11_873, 400, 16, best=100.0),
    BenchSet("CoQA", GENERAL, ("coqa",), "em", 500, 500, 16),
    BenchSet("PubMedQA", GENERAL, ("pubmedqa",), "acc", 500, 1050),
    BenchSet("WMT14 en-fr", GENERAL, ("wmt14-en-fr",), "bleu", 3_003, 60, 60, best=100.0),
)

METHODS = {
    "model_soup": BenchMethod("Model Soup", {"merging_method_name": "average_merging"}),
    BASELINE: BenchMethod("Task Arithmetic", {"merging_method_name": "task_arithmetic", "scaling_coefficient": 0.4}),
    "ties": BenchMethod(
        "TIES",
        # Sums what agrees, as MergeBench does; it trims the whole model at once, this method each tensor.
        {
            "merging_method_name": "ties_per_tensor",
            "density": 0.3,
            "no-normalize": True,
            "scaling_coefficient": 0.4,
        },
    ),
    "dare": BenchMethod(
        "DARE",
        {
            "merging_method_name": "mask_merging",
            "mask_apply_method": "task_arithmetic",
            "weight_mask_rate": 0.9,
            "use_weight_rescale": True,
            "scaling_coefficient": 0.4,
        },
    ),
    "consensus_ta": BenchMethod("Consensus TA", {"merging_method_name": "consensus_ta", "scaling_coefficient": 0.4}),
    "localize_and_stitch": BenchMethod(
        "Dataless Localize-and-Stitch", {"merging_method_name": "localize_and_stitch", "sparsity": 0.1}, reads=2
    ),
}

FULL = Suite(BASES, DATA_SETS, METHODS)

TINY = Suite(
    bases=(
        Base(
            "tiny",
            str(TINY_ZOO / "base"),
            1_200_000,
            2_400_000,
            {
                domain: str(TINY_ZOO / role)
                for domain, role in ((INSTRUCTION, "instruct"), (MATH, "math"), (CODING, "code"))
            },
        ),
    ),
    data_sets=(
        BenchSet("instructions", INSTRUCTION, ("tiny_instructions",), "exact_match", 60, 40, 12),
        BenchSet("word problems", MATH, ("tiny_word_problems",), "exact_match,number", 60, 80, 40),
        BenchSet("HumanEval", CODING, ("human_eval",), "pass@1", 60, 100, 30, harness=PROGRAM),
        BenchSet("MBPP", CODING, ("mbpp",), "pass@1", 60, 100, 30, harness=PROGRAM),
        BenchSet("sums", GENERAL, ("tiny_sums",), "acc", 60, 320),
    ),
    methods=METHODS,
    task_options={"data_dir": str(TINY_ZOO / "data"), "lm_eval_include_path": str(TINY_ZOO / "lm_eval")},
)


@cache
def published_values() -> dict[tuple[str, str], dict[str, Published]]:
    """The published values, by base and method's title, and then by data set."""
    values: dict[tuple[str, str], dict[str, Published]] = {}
    with open(PUBLISHED, encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            found = Published(float(row["value"]), row["metric"], row["source"])
            values.setdefault((row["base"], row["method"]), {})[row["dataset"]] = found
    return values
