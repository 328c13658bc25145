"""Output places of a run, as in the paper's README."""

from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from utils.errors import UserError

SINGLE_MODEL = "single_model"  # in place of the tasks, for a model that was not merged here


@dataclass(frozen=True)
class OutputPlaces:
    """The places of one run below `root`.

    `tasks` joins the merged task names (`instruct_code`). `name` identifies the run and may be nested
    (`mask_merging/average_merging/mask_0.2_0.2_rescale_True`). It contains dots, so suffixes are appended to it.
    `model_id` replaces the name in LiveBench's files.
    """

    root: Path
    tasks: str
    name: str
    model_id: str | None = None

    def __post_init__(self) -> None:
        for part in (self.tasks, self.name):
            pure = PurePosixPath(part)
            if not pure.parts or pure.is_absolute() or ".." in pure.parts:
                raise UserError(f"{part!r} cannot name outputs; give a relative path below --output_dir")

    def merged_model(self, task: str) -> Path:
        """The folder with the merged weights and the tokenizer of `task` (instruct, math or code)."""
        return self.root / "save_merge_models" / self.tasks / task / self.name

    def kept_record(self) -> Path:
        """The record of a merge whose weights may be deleted."""
        return self.root / "merge_records" / self.tasks / f"{self.name}.json"

    def log(self, time: str) -> Path:
        """The log of the merge started at `time`."""
        return self.root / "save_merge_llm_logs" / self.tasks / self.name / f"{time}.log"

    def raw_generations(self, task: str) -> Path:
        """All raw completions of a task (gsm8k, ...), one JSON row each."""
        return self.root / "save_raw_generations" / self.tasks / self.name / f"{_file_name(task)}.jsonl"

    def lm_eval_samples(self, task: str) -> Path:
        """The metrics of each answer to a task of lm-evaluation-harness."""
        return self.root / "save_lm_eval_samples" / self.tasks / self.name / f"{_file_name(task)}.jsonl"

    def alpaca_eval(self) -> Path:
        """The outputs file for alpaca_eval."""
        folder = self.root / "save_gen_instruct_responses_results" / self.tasks / "alpaca_eval"
        return folder / f"{self.name}.json"

    def alpaca_eval_references(self) -> Path:
        """The reference outputs for the same instructions."""
        folder = self.root / "save_gen_instruct_responses_results" / self.tasks / "alpaca_eval"
        return folder / f"{self.name}.references.json"

    def code(self, task: str) -> Path:
        """The programs of human_eval or mbpp, in the form of their evaluators."""
        return self.root / "save_gen_codes_results" / self.tasks / task / f"{self.name}.jsonl"

    def human_eval_problems(self) -> Path:
        """The attempted problems, if they are not the evaluator's own 164."""
        return self.root / "save_gen_codes_results" / self.tasks / "human_eval" / f"{self.name}.problems.jsonl"

    def evalplus(self, task: str) -> Path:
        """The programs of human_eval or mbpp for EvalPlus."""
        return self.root / "save_gen_codes_results" / self.tasks / task / f"{self.name}.evalplus.jsonl"

    def livebench_answers(self, evaluate_task: str, category: str, task: str) -> Path:
        """Answers to one LiveBench task. The category's folder, which goes into LiveBench's data/live_bench, has one
        file of answers per model."""
        folder = self.livebench_category(evaluate_task, category) / task / "model_answer"
        return folder / f"{self.livebench_id}.jsonl"

    def livebench_category(self, evaluate_task: str, category: str) -> Path:
        return self.root / f"save_gen_{evaluate_task}_livebench_results" / category

    def adversarial_result(self, dataset: str, attack: str) -> Path:
        """The result of an attack on a prompt."""
        return self.root / "save_adversarial_results" / dataset / self.model / f"{attack}.json"

    def adversarial_completions(self, dataset: str, run: str) -> Path:
        """Completions of attacked prompts, one JSON row each."""
        return self.root / "save_raw_generations" / "promptbench" / dataset / self.model / f"{run}.jsonl"

    def mixup_search(self) -> Path:
        """The results of a search for interpolation ratios."""
        return self.root / "save_mixup_searches" / self.tasks / f"{self.name}.sqlite"

    @property
    def livebench_id(self) -> str:
        """The model's name in LiveBench."""
        return self.model if self.model_id is None else self.model_id

    @property
    def model(self) -> str:
        """The run's names as one unique word."""
        name = self.name.replace("/", "_")
        return name if self.tasks == SINGLE_MODEL else f"{self.tasks}_{name}"

    def scores(self) -> Path:
        """Metrics, files and evaluator commands of all tasks of the run."""
        return self.root / "save_scores" / self.tasks / f"{self.name}.json"


def _file_name(task: str) -> str:
    """A task's name without a colon, which some file systems do not take."""
    return task.replace(":", "_")
