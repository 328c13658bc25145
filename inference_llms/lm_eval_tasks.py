"""Tasks of lm-evaluation-harness by name: its prompts, filters and metrics, and our engines, records and searches."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import io
import json
import logging
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inference_llms.data_sets import DataSet
from inference_llms.engines.engine import Completion, Engine, Sampling
from inference_llms.prompt_format import CHAT, PromptFormat
from inference_llms.task import Answers, Example, Task
from inference_llms.tasks import LM_EVAL, TASK_NAMES, TASKS
from utils.content_hashes import json_hash
from utils.errors import UserError
from utils.json_files import write_json_lines
from utils.output_places import OutputPlaces

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# The task's own limit of new tokens applies; a smaller one is given by --max_tokens.
NO_LIMIT = 2**31
VERSIONS = ">=0.4.13,<0.5"  # as in pyproject.toml
ADDRESS = re.compile(r" at 0x[0-9a-f]+")
FEWSHOT_SEED = 1234  # the harness's default

Metrics = Mapping[tuple[str, str], Any]  # a document's values by metric and filter


@dataclass(frozen=True, kw_only=True)
class LmEvalTask(Task):
    """A task of the harness. An example is a document; its completion is the JSON list of the responses to the
    document's requests, each a list with one entry per repetition: a text, a log-probability, or a pair of a
    log-probability and whether the continuation is the greedy one."""

    include_path: Path | None

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "write_files", self._write_samples)

    @property
    def lm_eval_name(self) -> str:
        return self.name.removeprefix(LM_EVAL)

    def load_examples(self, data_dir: Path | None, release: str | None = None) -> list[Example]:
        """Every document of the task's test split, or of its validation split if there is no other."""
        requests = self._requests()
        return [
            Example(number, _prompt_text(of_document), {"doc": of_document[0].doc})
            for number, of_document in requests.items()
        ]

    def prompts_as_read(
        self, tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example]
    ) -> Iterator[tuple[str, int, str]]:
        """As `Task.prompts_as_read`. Texts to score are below the context that they are scored after."""
        from inference_llms.lm_eval_requests import RequestEncoder, requests_as_read

        encoder = RequestEncoder(tokenizer)
        for example in examples:
            yield requests_as_read(self._requests_as_read(tokenizer, example), encoder, self.sampling.max_tokens)

    def complete(self, engine: Engine, examples: Sequence[Example]) -> Iterator[tuple[int, Completion]]:
        from inference_llms.lm_eval_requests import answer_requests

        requests, owners = [], []  # with the position of each request's example, document's request and repetition
        responses: list[list[list[Any]]] = []
        for position, example in enumerate(examples):
            of_document = self._requests_as_read(engine.tokenizer, example)
            responses.append([[None] * (request.repeats or 1) for request in of_document])
            for number, request in enumerate(of_document):
                for repetition in range(request.repeats or 1):
                    requests.append(request)
                    owners.append((position, number, repetition))
        left = [sum(map(len, of_document)) for of_document in responses]
        tokens, cut_off = [0] * len(examples), [False] * len(examples)
        for response in answer_requests(engine, requests, self.sampling.max_tokens, self._are_chats):
            position, number, repetition = owners[response.position]
            responses[position][number][repetition] = response.value
            tokens[position] += response.tokens
            cut_off[position] |= response.cut_off
            left[position] -= 1
            if left[position] == 0:
                yield position, Completion(json.dumps(responses[position]), tokens[position], cut_off[position])

    def scores(self, examples: Sequence[Example], completions: Sequence[str]) -> dict[str, float]:
        """The harness's metrics under its names, with the filter's name if it has one; and `accuracy`, the share of
        right answers, if an answer is right or wrong."""
        from lm_eval.api.metrics import mean

        of_examples, values = self._metrics(examples, completions), defaultdict(list)
        for of_example in of_examples:
            for key, value in of_example.items():
                values[key].append(value)
        aggregation, found = self._loaded.aggregation(), {}
        with _task_errors(self.name, "has metrics that fail"):
            for (metric, key), of_metric in values.items():
                found[_shown(metric, key)] = aggregation.get(metric, mean)(of_metric)
        if self.right_metric is not None:
            found["accuracy"] = mean([self._is_right(of_example) for of_example in of_examples])
        return found

    def verdicts(self, examples: Sequence[Example], completions: Sequence[str]) -> list[bool]:
        """Whether the harness gives each answer all of the task's first averaged metric, with the first filter."""
        return [self._is_right(of_example) for of_example in self._metrics(examples, completions)]

    def _is_right(self, metrics: Metrics) -> bool:
        values = (value for (metric, _), value in metrics.items() if metric == self.right_metric)
        return bool(next(values, None) == 1)  # a task may leave a metric out for an answer

    def check_verdicts(self, examples: Sequence[Example]) -> None:
        if self.right_metric is None:
            raise UserError(
                f"--tasks {self.name}: its answers are not right or wrong, which a search needs; leave it out"
            )

    @property
    def right_metric(self) -> str | None:
        """The first metric that is a mean over answers and that is better if it is higher."""
        from lm_eval.api.metrics import mean

        higher = self._loaded.higher_is_better()
        return next(
            (name for name, rule in self._loaded.aggregation().items() if rule is mean and higher.get(name)), None
        )

    def _metrics(self, examples: Sequence[Example], completions: Sequence[str]) -> list[Metrics]:
        with _task_errors(self.name, "has metrics that fail"):
            return [self._metrics_of(*pair) for pair in zip(examples, completions, strict=True)]

    def _metrics_of(self, example: Example, completion: str) -> Metrics:
        loaded = self._loaded
        responses = json.loads(completion)
        answered = [
            replace(request, resps=[self._response(one) for one in of_request], filtered_resps={})
            for request, of_request in zip(self._requests()[example.id], responses, strict=True)
        ]
        for steps in loaded._filters:
            steps.apply(answered)
        return {
            (metric, key): value
            for key in answered[0].filtered_resps
            for metric, value in loaded.process_results(
                example.row["doc"], [request.filtered_resps[key] for request in answered]
            ).items()
        }

    def answer(self, completion: str) -> str:
        return completion  # JSON; see `_response`

    def text(self, answer: str) -> str:
        """The JSON; nothing if all responses are texts without an answer."""
        responses = [self._response(one) for of_request in json.loads(answer) for one in of_request]
        return "" if all(isinstance(one, str) and not one.strip() for one in responses) else answer

    def _response(self, stored: Any) -> Any:
        """A stored response in the harness's types, without the thinking of a chat."""
        if isinstance(stored, str):
            return self.prompt_format.answer(stored)
        return tuple(stored) if isinstance(stored, list) else stored

    def _write_samples(self, answers: Answers, places: OutputPlaces) -> tuple[Path, ...]:
        """Write the metrics of each answer, and whether it is right (null: neither right nor wrong)."""
        path, rows = places.lm_eval_samples(self.name), []
        metrics = self._metrics(answers.examples, answers.completions)
        for example, of_example in zip(answers.examples, metrics, strict=True):
            right = None if self.right_metric is None else self._is_right(of_example)
            shown = {_shown(*key): value for key, value in of_example.items()}
            rows.append({"id": example.id, "right": right, **json.loads(json.dumps(shown, default=str))})
        write_json_lines(path, rows)
        return (path,)

    @property
    def _loaded(self) -> Any:
        return load_task(self.lm_eval_name, self.include_path)

    @property
    def _are_chats(self) -> bool:
        return self.prompt_format.name == CHAT

    def _requests(self) -> Mapping[int, Sequence[Any]]:
        system_prompt = self.prompt_format.system_prompt
        return build_requests(self.lm_eval_name, self.include_path, self._are_chats, system_prompt)

    def _requests_as_read(self, tokenizer: PreTrainedTokenizerBase, example: Example) -> list[Any]:
        """A document's requests, with chats in the model's template."""
        from inference_llms.lm_eval_requests import with_template

        render = partial(_rendered, tokenizer, self.prompt_format)
        requests = self._requests()[example.id]
        return [
            replace(request, arguments=(with_template(request.args[0], render), *request.args[1:]))
            for request in requests
        ]


def _shown(metric: str, filter_name: str) -> str:
    return metric if filter_name == "none" else f"{metric},{filter_name}"


def open_task(name: str, include_path: Path | None) -> LmEvalTask:
    """The task `lm_eval:NAME`, from the YAML files below `include_path` or else the harness's own.

    Raises UserError if the harness is not installed, has no such task, or cannot load its data."""
    loaded = load_task(name.removeprefix(LM_EVAL), include_path)
    # A function of a few-shot setting is written with its address, which differs between processes.
    config = json.loads(ADDRESS.sub("", json.dumps(loaded.dump_config(), default=str, sort_keys=True)))
    return LmEvalTask(
        name=name,
        include_path=include_path,
        data_set=DataSet((f"file of {name}",), {}, name, lambda: ()),
        make_prompt=str,
        make_question=str,
        sampling=Sampling(max_tokens=NO_LIMIT),
        about={
            "lm_eval": {
                "version": importlib.metadata.version("lm_eval"),
                "task_version": loaded.VERSION,
                "num_fewshot": loaded.config.num_fewshot or 0,
                "config": json_hash(config),
            }
        },
    )


def expand_names(names: Sequence[str], include_path: Path | None) -> list[str]:
    """The names with each group or tag of the harness replaced by its tasks, each once.

    Raises UserError for names that are not tasks, and for tasks of the harness that cannot run here."""
    check_known(names, include_path)
    expanded = []
    for name in names:
        expanded += _tasks_of(name, include_path) if name.startswith(LM_EVAL) else [name]
    return list(dict.fromkeys(expanded))


def _tasks_of(name: str, include_path: Path | None) -> list[str]:
    name_there = name.removeprefix(LM_EVAL)
    entry = _index_of(name_there, include_path).task_index[name_there]
    check_can_run(name, entry)
    if entry.kind.name == "TAG":
        parts = sorted(entry.tags)
    elif entry.kind.name == "GROUP":
        parts = entry.cfg["task"] if isinstance(entry.cfg["task"], list) else [entry.cfg["task"]]
        if not all(isinstance(part, str) for part in parts):
            raise UserError(f"{name} is a group that changes its tasks; name the tasks themselves")
    else:
        return [name]
    return [task for part in parts for task in _tasks_of(f"{LM_EVAL}{part}", include_path)]


def check_known(names: Sequence[str], include_path: Path | None) -> None:
    """Raise UserError for names that are not tasks, all in one, with near matches."""
    unknown = []
    for name in names:
        prefix = LM_EVAL if name.startswith(LM_EVAL) else ""
        bare = name.removeprefix(prefix)
        known = _index_of(bare, include_path).task_index if prefix else TASKS
        if bare not in known:
            near = ", ".join(prefix + one for one in get_close_matches(bare, known))
            unknown.append(f"{name} (near: {near})" if near else name)
    if unknown:
        raise UserError(f"unknown tasks: {', '.join(unknown)}; choose from {TASK_NAMES}")


def check_can_run(name: str, entry: Any) -> None:
    """Raise UserError if an entry of the harness's index is a task that cannot run here."""
    config = entry.cfg or {}
    if config.get("unsafe_code"):
        raise UserError(
            f"{name}: runs the programs that a model writes without protection; use human_eval or mbpp instead"
        )
    if "doc_to_image" in config or "doc_to_audio" in config or "MultiModal" in str(config.get("class")):
        raise UserError(f"{name}: needs images or sound, and only text is supported; leave it out")


def _index_of(name: str, include_path: Path | None) -> Any:
    """The harness's index that has a name: that of the given folder alone if it can be. If none has it, the index of
    all. Raises UserError for a file that cannot be read in a folder without this name."""
    if include_path is not None:
        index = _index(include_path, with_defaults=False)
        if name in index.task_index:
            return index
        check_yaml_files(include_path)
    return _index(include_path, with_defaults=True)


@cache
def check_yaml_files(folder: Path) -> None:
    """Raise UserError for a YAML file that cannot be read. The harness skips such files."""
    from lm_eval.tasks.manager import load_yaml

    for path in sorted(folder.rglob("*.yaml")):
        try:
            load_yaml(path, resolve_func=False)
        except Exception as error:  # of the YAML file, or of one that it includes
            reason = " ".join(str(error).split())
            raise UserError(f"--lm_eval_include_path: {path} cannot be read ({reason}); fix or remove it") from error


@cache
def _index(include_path: Path | None, with_defaults: bool) -> Any:
    """The harness's index of tasks, a `TaskManager`; reading those that it brings along takes seconds."""
    check_installed()
    if include_path is not None and not include_path.is_dir():
        raise UserError(
            f"--lm_eval_include_path {include_path}: is not a folder; give one that holds YAML files of tasks"
        )
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=None if include_path is None else str(include_path), include_defaults=with_defaults)


def check_installed() -> None:
    """Raise UserError unless the harness is installed, in a version that works."""
    remedy = 'run `pip install -e ".[lm-eval]"`'
    if importlib.util.find_spec("lm_eval") is None:
        raise UserError(f"tasks named lm_eval:NAME need lm-evaluation-harness; {remedy}")
    from packaging.specifiers import SpecifierSet  # slow to import, and needed only with the harness

    version = importlib.metadata.version("lm_eval")
    if not SpecifierSet(VERSIONS).contains(version, prereleases=True):
        raise UserError(f"lm-evaluation-harness {version} is installed, and {VERSIONS} works; {remedy}")


@cache
def load_task(name: str, include_path: Path | None) -> Any:
    """The harness's own object, with its data. Raises UserError for what cannot run here."""
    check_known([f"{LM_EVAL}{name}"], include_path)
    index = _index_of(name, include_path)
    entry = index.task_index[name]
    if entry.kind.name not in ("TASK", "PY_TASK"):
        raise UserError(f"{LM_EVAL}{name} is a group of tasks; name its tasks, or give it with --tasks")
    check_can_run(f"{LM_EVAL}{name}", entry)
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    with (
        _task_errors(f"{LM_EVAL}{name}", "cannot be loaded", "check its YAML file, or run it once with a network"),
        redirect_stderr(io.StringIO()),  # progress bars
    ):
        loaded = index.load([name])["tasks"][name]
        loaded.eval_docs  # noqa: B018 - loads the data
    return loaded


@contextmanager
def _task_errors(name: str, fault: str, remedy: str = "check its YAML file") -> Iterator[None]:
    """Raise UserError for any error of the network, the hub, a task's YAML file, or Python code beside it."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{name}: {fault} ({type(error).__name__}: {reason}); {remedy}") from error


@cache
def build_requests(
    name: str, include_path: Path | None, is_chat: bool, system_prompt: str | None
) -> dict[int, list[Any]]:
    """The requests of each document, by the document's number, with the harness's choice of few-shot examples."""
    from inference_llms.lm_eval_requests import chat_as_text

    loaded = load_task(name, include_path)
    if loaded.config.num_fewshot is None:
        loaded.set_config(key="num_fewshot", value=0)
    loaded.set_fewshot_seed(seed=FEWSHOT_SEED)
    with (
        _task_errors(f"{LM_EVAL}{name}", "has prompts that fail"),
        redirect_stderr(io.StringIO()),  # progress bars
    ):
        loaded.build_all_requests(
            system_instruction=system_prompt,
            apply_chat_template=is_chat,
            fewshot_as_multiturn=is_chat,
            chat_template=chat_as_text if is_chat else None,
        )
    by_document: dict[int, list[Any]] = {}
    for request in loaded.instances:
        by_document.setdefault(request.doc_id, []).append(request)
    return by_document


def _prompt_text(requests: Sequence[Any]) -> str:
    """A document's requests as one text: each context once, with its continuations below."""
    parts: dict[str, list[str]] = {}
    for request in requests:
        context, *others = request.args
        parts.setdefault(context, []).extend(json.dumps(one, ensure_ascii=False) for one in others)
    return "\n".join("\n-> ".join([context, *others]) for context, others in parts.items())


def _rendered(
    tokenizer: PreTrainedTokenizerBase, prompt_format: PromptFormat, history: list[dict[str, str]], ends_open: bool
) -> str:
    """A chat of the harness in the model's template."""
    from inference_llms.engines.chat_templates import render

    return render(tokenizer, history, prompt_format.thinking, ends_open)
