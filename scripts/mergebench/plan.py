"""The steps of MergeBench: commands, with the disk and the time that each needs."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from model_merging_methods.merge_request import run_name, tasks_name
from scripts.mergebench.suite import LM_EVAL, SAFETY, SAFETY_EVAL, Base, BenchMethod, BenchSet, Suite
from scripts.paper_tables.cells import merge_of_options, option_words
from utils.output_places import OutputPlaces

BASE = "base"  # the subject that is the base itself; others are named by domain (specialists) or method (merges)
MERGE, TASKS = "merge", "tasks"

# Assumptions for time estimates. Tokens per second of a model of 8 billion parameters under vLLM on one A40; a model's
# rates are inverse to its size. MergeBench's repository has the times of two runs on that card (RegMeanPlusPlus_*/
# lm_eval.json): 8,999 s with 8.0 billion parameters and 2,871 s with 3.2 billion. These rates give 9,280 s and 3,749 s.
SCORED_TOKENS_PER_SECOND, NEW_TOKENS_PER_SECOND = 7_000, 1_300
REFERENCE_PARAMETERS = 8_000_000_000
START_SECONDS = 60  # of an engine
MERGED_BYTES_PER_SECOND = 1_000_000_000  # of checkpoints read and written, on a local disk


@dataclass(frozen=True)
class BenchSetting:
    """The options of a run. `suite`: the chosen part of it. `safety_eval`: the folder of the program safety-eval; None
    leaves the safety sets out. `inputs`: size and time of every file on this machine that tasks read."""

    suite: Suite
    is_tiny: bool
    results_dir: Path
    backend: str
    tensor_parallel_size: int | None = None
    allow_code_execution: bool = False
    safety_eval: Path | None = None
    inputs: Mapping[str, Sequence[int]] = field(default_factory=dict)

    def folder(self, base: Base, subject: str) -> Path:
        """The root of a subject's outputs."""
        return self.results_dir / base.name / subject


@dataclass(frozen=True)
class BenchStep:
    """One command. `subject`: the model that it makes or tests. `words`: the command after the interpreter, run in
    `cwd`. `work`: steps of a base with equal work take about the same time. `seconds`: an estimate; None for the tiny
    models. `written` and `downloaded`: the bytes of checkpoints that it writes and downloads."""

    base: Base
    subject: str
    kind: str
    words: tuple[str, ...]
    work: tuple[str, ...]
    cwd: Path | None = None
    seconds: float | None = None
    written: int = 0
    downloaded: int = 0

    @property
    def name(self) -> str:
        return f"{self.base.name}/{self.subject}/{self.kind}"

    @property
    def text(self) -> str:
        """The command for people."""
        command = shlex.join(["python", *self.words])
        return command if self.cwd is None else f"cd {shlex.quote(str(self.cwd))} && {command}"


def steps_of_base(base: Base, setting: BenchSetting) -> Iterator[BenchStep]:
    """The steps of a base: its own tasks, each specialist's, and each merge with its tasks."""
    suite = setting.suite
    sizes = {BASE: base.stored_bytes, **{domain: base.bytes for domain in suite.domains}}
    to_download = {} if setting.is_tiny else dict(sizes)
    models = {BASE: base.hub_id, **{domain: base.specialists[domain] for domain in suite.domains}}
    for subject, model in models.items():
        sets = suite.data_sets if subject == BASE else suite.sets_of(subject)
        for step in _test(base, subject, model, sets, setting):
            yield replace(step, downloaded=to_download.pop(subject, 0))
    for name, method in suite.methods.items():
        options = _merge_options(base, method, setting)
        words = ("-m", "model_merging_methods", "merge", *option_words(options))
        words += ("--output_dir", str(setting.folder(base, name)))
        seconds = (method.reads * sum(sizes.values()) + base.bytes) / MERGED_BYTES_PER_SECOND
        work = (MERGE, str(method.reads))
        seconds = None if setting.is_tiny else seconds
        downloaded = sum(to_download.values())  # specialists without a step of their own
        to_download.clear()
        yield BenchStep(base, name, MERGE, words, work, None, seconds, base.bytes, downloaded)
        yield from _test(base, name, str(merged_model(base, name, setting)), suite.data_sets, setting)


def _merge_options(base: Base, method: BenchMethod, setting: BenchSetting) -> dict[str, Any]:
    named = {domain: base.specialists[domain] for domain in setting.suite.domains}
    models = [f"{domain}={model}" for domain, model in named.items()]
    # Merges have the pretrained model's dtype, unless another is given.
    dtype = {"dtype": "bfloat16"} if base.stored_bytes > base.bytes else {}
    return {"pretrained_model": base.hub_id, "models": models, **method.options, **dtype}


def merged_model(base: Base, subject: str, setting: BenchSetting) -> Path:
    """The folder of a merge. All specialists' folders share their weights; this one has the first one's tokenizer."""
    roles, parameters = merge_of_options(_merge_options(base, setting.suite.methods[subject], setting))
    places = OutputPlaces(setting.folder(base, subject), tasks_name(roles), run_name(parameters, len(roles)))
    return places.merged_model(roles[0])


def _test(
    base: Base, subject: str, model: str, data_sets: Sequence[BenchSet], setting: BenchSetting
) -> Iterator[BenchStep]:
    """The steps that run these data sets on a model: with inference_llms, and the safety sets with safety-eval if it
    is there."""
    own = [one for one in data_sets if one.harness != SAFETY_EVAL]
    others = [one for one in data_sets if one.harness == SAFETY_EVAL]
    folder = setting.folder(base, subject)
    if own:
        options = {
            "load_model_path": model,
            "tasks": [name for one in own for name in one.task_names],
            **_task_options(own, setting.suite.task_options),
            "output_dir": str(folder),
            "backend": setting.backend,
        }
        if setting.tensor_parallel_size is not None:
            options["tensor_parallel_size"] = setting.tensor_parallel_size
        words = ("-m", "inference_llms", *option_words(options))
        work = (TASKS, *options["tasks"])
        seconds = None if setting.is_tiny else estimated_seconds(base, own)
        yield BenchStep(base, subject, TASKS, words, work, None, seconds)
    if others and setting.safety_eval is not None:
        yield _safety_step(base, subject, model, others, setting)


def _task_options(data_sets: Sequence[BenchSet], options: Mapping[str, Any]) -> dict[str, Any]:
    """The suite's options without those that have no effect on these sets."""
    harnesses = {one.harness for one in data_sets}
    unused = {"lm_eval_include_path"} if LM_EVAL not in harnesses else {"data_dir"} if harnesses == {LM_EVAL} else set()
    return {name: value for name, value in options.items() if name not in unused}


def _safety_step(
    base: Base, subject: str, model: str, data_sets: Sequence[BenchSet], setting: BenchSetting
) -> BenchStep:
    """The call of safety-eval, as in MergeBench's `scripts/evaluate.sh`."""
    folder = setting.folder(base, subject).absolute()
    options = {
        "model_name_or_path": Path(model).absolute() if Path(model).is_relative_to(setting.results_dir) else model,
        "use_vllm": True,
        "model_input_template_path_or_name": "llama3",
        "tasks": ",".join(task for one in data_sets for task in one.tasks),
        "report_output_path": folder / f"{SAFETY}_eval.json",
        "save_individual_results_path": folder / f"{SAFETY}_generation.json",
        "batch_size": 8,
    }
    words = ("evaluation/eval.py", "generators", *option_words(options))
    seconds = estimated_seconds(base, data_sets)
    return BenchStep(base, subject, SAFETY, words, (SAFETY,), setting.safety_eval, seconds)


def estimated_seconds(base: Base, data_sets: Sequence[BenchSet]) -> float:
    """The time of these sets on one A40, by the assumptions above."""
    scored = sum(one.examples * one.scored_tokens for one in data_sets) / SCORED_TOKENS_PER_SECOND
    new = sum(one.examples * one.new_tokens for one in data_sets) / NEW_TOKENS_PER_SECOND
    return START_SECONDS + (scored + new) * base.parameters / REFERENCE_PARAMETERS
