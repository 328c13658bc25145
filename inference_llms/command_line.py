"""Inference options, shared by every script that runs a model."""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from inference_llms.engines.engine import Engine
from inference_llms.engines.open_engine import check_engine_request, open_engine, resolve_backend
from inference_llms.evaluators.alpaca_eval import ANNOTATOR, ANNOTATOR_MODEL, PAPER_ANNOTATOR, Judge
from inference_llms.lm_eval_tasks import expand_names
from inference_llms.model_folder import (
    check_model_folder,
    check_tokenizer,
    file_hashes,
    model_files,
    model_fingerprint,
    output_places,
    weights_fingerprint,
)
from inference_llms.prompt_format import CHAT, PromptFormat, add_prompt_options, prompt_format
from inference_llms.run_tasks import (
    ModelSource,
    ModelTasks,
    ReplaySource,
    TaskExamples,
    load_task_examples,
    run_tasks,
    score_lines,
)
from inference_llms.tasks import LM_EVAL, TASK_NAMES, find_task, reads_data_dir
from inference_llms.tasks.alpaca_eval import judged_by
from utils.command_line import options_on_record, positive_number, whole_number
from utils.content_hashes import FileStates, check_unchanged, file_states
from utils.errors import UserError
from utils.model_folders import find_model_folder

BACKENDS = ("auto", "vllm", "transformers", "replay")
ENGINE_DTYPES = ("float32", "auto")
SHOWN = 3  # prompts of a task


def add_tasks_option(parser: argparse._ActionsContainer) -> None:
    parser.add_argument("--tasks", nargs="+", metavar="TASK", help=f"one or more of {TASK_NAMES}")
    parser.add_argument(
        "--lm_eval_include_path",
        type=Path,
        metavar="DIR",
        help="folder with YAML files of more tasks for lm-evaluation-harness",
    )


def add_inference_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose a model's examples and its engine, in two groups."""
    examples = parser.add_argument_group("examples and outputs")
    examples.add_argument("--data_dir", type=Path, help="folder with the sets' files (default: download the sets)")
    examples.add_argument("--output_dir", type=Path, default=Path(), help="root of all save_* folders (default: .)")
    examples.add_argument(
        "--start_index",
        type=whole_number,
        default=0,
        help="first example of each task (default: 0); slices of one run accumulate",
    )
    examples.add_argument("--end_index", type=whole_number, help="the example after the last (default: all)")
    examples.add_argument(
        "--overwrite", action="store_true", help="replace existing results of this name, and score this slice alone"
    )
    add_prompt_options(examples)
    add_judge_options(examples)
    engines = parser.add_argument_group("engine")
    engines.add_argument(
        "--backend",
        choices=BACKENDS,
        default="auto",
        help="engine; auto: vllm if it is installed and there is a GPU, else transformers; replay: score stored "
        "completions (default: auto)",
    )
    engines.add_argument("--replay_from", type=Path, help="with replay: folder of <task>.jsonl (id, completion)")
    add_engine_options(engines)
    engines.add_argument(
        "--pipeline_parallel_size", type=positive_number, default=1, help="vLLM: groups of layers (default: 1)"
    )


def add_judge_options(parser: argparse._ActionsContainer) -> None:
    text = f"judge of alpaca_eval: one of its annotators (default: {ANNOTATOR}; the paper's: {PAPER_ANNOTATOR})"
    parser.add_argument("--annotators_config", metavar="NAME", help=text)
    text = f"judge of alpaca_eval: this model, with a prompt of ours (default with --judge_base_url: {ANNOTATOR_MODEL})"
    parser.add_argument("--judge_model", metavar="NAME", help=text)
    text = "server of the judge, with OpenAI's interface, such as http://localhost:8000/v1 (default: OpenAI's)"
    parser.add_argument("--judge_base_url", metavar="URL", help=text)


def add_engine_options(parser: argparse._ActionsContainer) -> None:
    """Add the options of engines that every script has."""
    parser.add_argument(
        "--tensor_parallel_size",
        type=positive_number,
        help="vLLM: GPUs per layer (default: all that the model's attention heads allow; 1 on the CPU)",
    )
    parser.add_argument(
        "--engine_dtype",
        choices=ENGINE_DTYPES,
        default=ENGINE_DTYPES[0],
        help="transformers on the CPU: compute in float32 (default), or (auto) in bfloat16 if the checkpoint has "
        "that dtype and the processor is faster with it",
    )
    parser.add_argument(
        "--max_tokens", type=positive_number, help="limit of new tokens per completion (default: the task's)"
    )


def check_tasks_option(arguments: argparse.Namespace) -> None:
    """Replace a group of lm-evaluation-harness by its tasks. Raise `UserError` for a task that is named twice, does
    not exist or cannot run, and for an option without effect."""
    tasks, include_path = arguments.tasks or [], arguments.lm_eval_include_path
    if len(set(tasks)) < len(tasks):
        raise UserError("--tasks names a task twice; name each once")
    if include_path is not None and not any(name.startswith(LM_EVAL) for name in tasks):
        raise UserError(f"--lm_eval_include_path has no effect without a task named {LM_EVAL}NAME; remove it")
    if tasks and arguments.data_dir is not None and not reads_data_dir(tasks):
        raise UserError(f"--data_dir has no effect on tasks named {LM_EVAL}NAME, which load their own data; remove it")
    if tasks:
        arguments.tasks = expand_names(tasks, include_path)


def check_inference_options(arguments: argparse.Namespace) -> None:
    """Raise `UserError` for options that contradict each other."""
    if arguments.backend == "replay" and arguments.replay_from is None:
        raise UserError("--backend replay needs --replay_from DIR, a folder that holds <task>.jsonl")
    if arguments.backend != "replay" and arguments.replay_from is not None:
        raise UserError("--replay_from has no effect without --backend replay; add that or remove this")
    if arguments.backend == "replay" and arguments.max_tokens is not None:
        raise UserError("--max_tokens has no effect with --backend replay, which generates nothing; remove it")
    check_engine_dtype(arguments)
    prompt_format(arguments)
    _check_judge(arguments)
    if arguments.output_dir.exists() and not arguments.output_dir.is_dir():
        raise UserError(f"--output_dir {arguments.output_dir} is not a folder; choose another")
    if arguments.end_index is not None and arguments.end_index <= arguments.start_index:
        raise UserError("--end_index must be larger than --start_index")


def _check_judge(arguments: argparse.Namespace) -> None:
    """Raise `UserError` for options of the judge that contradict each other, or have no effect."""
    tasks = getattr(arguments, "tasks", ())  # None: those of the merged models
    if judge_of_options(arguments) is not None and tasks is not None and "alpaca_eval" not in tasks:
        names = ("annotators_config", "judge_model", "judge_base_url")
        given = next(name for name in names if getattr(arguments, name) is not None)
        raise UserError(f"--{given} has no effect without the task alpaca_eval; remove it")


def check_engine(arguments: argparse.Namespace) -> None:
    """Raise `UserError`, before any long work, if the chosen engine cannot run on this machine."""
    check_engine_request(arguments.backend, arguments.tensor_parallel_size, arguments.pipeline_parallel_size)


def check_engine_dtype(arguments: argparse.Namespace) -> None:
    """Raise `UserError` if `--engine_dtype` has no effect."""
    if arguments.engine_dtype != ENGINE_DTYPES[0] and resolve_backend(arguments.backend) != "transformers":
        raise UserError(
            f"--engine_dtype {arguments.engine_dtype} has no effect with {arguments.backend}, which computes in the "
            "checkpoint's dtype; remove it"
        )


def score_model_folder(
    options: argparse.Namespace,
    tasks: Sequence[str],
    command: str,
    release: str | None = None,
    model_id: str | None = None,
) -> list[str]:
    """Run tasks on the model of `--load_model_path`; returns the lines to print. `release` and `model_id` are
    LiveBench's."""
    folder = options.load_model_path
    if options.backend != "replay":
        folder = find_model_folder(str(folder))
    places = replace(output_places(folder, options.output_dir), model_id=model_id)
    if options.backend == "replay":
        source = ReplaySource(str(folder), options.replay_from)
    else:
        check_engine(options)
        source = model_source(options, folder)
    examples = chosen_examples(options, tasks, release)
    work = [ModelTasks(examples, source)]
    scores = run_tasks(work, places, options.overwrite, command, options_on_record(options))
    return [*score_lines(scores), f"scores: {places.scores()}"]


def chosen_examples(
    options: argparse.Namespace, tasks: Sequence[str], release: str | None = None
) -> dict[str, TaskExamples]:
    """The examples of these tasks, with prompts in the chosen format."""
    include_path, in_format = getattr(options, "lm_eval_include_path", None), prompt_format(options)
    found = [find_task(name, include_path).in_format(in_format).capped(options.max_tokens) for name in tasks]
    examples = load_task_examples(found, options.data_dir, options.start_index, options.end_index, release)
    judge = judge_of_options(options)
    if judge is not None and "alpaca_eval" in examples:
        judge.check_server()
        of_task = examples["alpaca_eval"]
        examples["alpaca_eval"] = replace(of_task, task=judged_by(of_task.task, judge))
    return examples


def judge_of_options(options: argparse.Namespace) -> Judge | None:
    """The judge of AlpacaEval that the options choose; None if they choose none. Raises UserError for options that are
    empty or contradict each other."""
    for name in ("annotators_config", "judge_model", "judge_base_url"):
        if getattr(options, name) == "":
            raise UserError(f"--{name} is empty; give its value, or remove it")
    own = (options.judge_model, options.judge_base_url)
    if options.annotators_config is not None:
        if own != (None, None):
            raise UserError(
                "--annotators_config brings its own model; remove it, or remove --judge_model and --judge_base_url"
            )
        judge = Judge(options.annotators_config)
        judge.check_annotator()
        return judge
    judge = Judge(ANNOTATOR, *own)
    return judge if judge.is_own else None


def check_chat_template(folder: Path, prompt_format: PromptFormat) -> None:
    """Raise UserError if prompts are chats and the tokenizer in `folder` cannot make them."""
    if prompt_format.name != CHAT:
        return
    from inference_llms.engines.chat_templates import render  # imports transformers, which takes seconds
    from inference_llms.engines.model_loading import open_tokenizer, refusals_in_one_line

    with refusals_in_one_line(folder, "transformers"):
        chat = prompt_format.prompt("Hello")
        render(open_tokenizer(folder), chat.messages, chat.thinking)


def show_prompts(options: argparse.Namespace, tasks: Sequence[str]) -> list[str]:
    """The first prompts of each task as lines: the text of the tokens that the model of `--load_model_path` gets, the
    number of tokens, and what ends an answer or that it is scored."""
    from inference_llms.engines.model_loading import open_tokenizer, refusals_in_one_line

    folder, asked = find_model_folder(str(options.load_model_path)), prompt_format(options)
    check_tokenizer([folder])
    check_chat_template(folder, asked)
    with refusals_in_one_line(folder, "transformers"):
        tokenizer = open_tokenizer(folder)
    lines = []
    for name, examples in chosen_examples(options, tasks).items():
        task, shown = examples.task, examples.chosen[:SHOWN]
        lines.append(f"{name}: {len(shown)} of {len(examples.chosen)} prompts, format {asked}")
        answered = None
        for example, (how, number, text) in zip(shown, task.prompts_as_read(tokenizer, shown), strict=True):
            lines += [how] if how != answered else []
            lines += [f"----- {name}, example {example.id}, {number} tokens", text]
            answered = how
    return lines


def model_source(arguments: argparse.Namespace, folder: Path) -> ModelSource:
    """Completions from the model in `folder`, by the chosen engine.

    Raises `UserError` for a folder that no engine can run; opening the engine raises it if a file of the model has
    changed since its fingerprint was taken.
    """
    check_model_folder(folder)
    check_chat_template(folder, prompt_format(arguments))
    backend = resolve_backend(arguments.backend)
    states = file_states(model_files(folder))
    hashes = file_hashes(folder)
    return ModelSource(
        backend=backend,
        model=str(folder),
        model_fingerprint=model_fingerprint(hashes),
        weights_fingerprint=weights_fingerprint(folder, hashes),
        open_engine=lambda: _open_unchanged(arguments, backend, folder, states),
        unusual_dtype=unusual_dtype(arguments.engine_dtype, folder),
    )


def _open_unchanged(arguments: argparse.Namespace, backend: str, folder: Path, states: FileStates) -> Engine:
    opened = open_engine(
        backend,
        folder,
        arguments.tensor_parallel_size,
        arguments.pipeline_parallel_size,
        arguments.engine_dtype,
    )
    try:
        check_unchanged(states, file_states(model_files(folder)))
    except UserError:
        opened.close()
        raise
    return opened


def unusual_dtype(engine_dtype: str, folder: Path) -> str | None:
    """The dtype that `--engine_dtype` selects; None if it is the default one."""
    if engine_dtype == ENGINE_DTYPES[0]:
        return None
    from inference_llms.engines.model_loading import (
        checkpoint_dtype,
        dtype_in_transformers,
        load_config,
        refusals_in_one_line,
    )

    with refusals_in_one_line(folder, "transformers"):
        checkpoint = checkpoint_dtype(load_config(folder))
    usual, dtype = (dtype_in_transformers(checkpoint, name) for name in (ENGINE_DTYPES[0], engine_dtype))
    return None if dtype == usual else dtype
