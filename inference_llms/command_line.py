"""The options of inference, the same for every script that runs a model."""

import argparse
from pathlib import Path

from inference_llms import engine
from inference_llms.folder_checks import check_model_folder
from inference_llms.model_folder import model_files, model_fingerprint, weights_fingerprint
from inference_llms.run_tasks import ModelSource
from inference_llms.tasks import TASKS
from utils.content_hashes import FileStates, check_unchanged, file_states
from utils.errors import UserError

BACKENDS = ("auto", "vllm", "transformers", "replay")


def whole_number(text: str) -> int:
    number = _integer(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text} is negative; give 0 or more")
    return number


def positive_number(text: str) -> int:
    number = _integer(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is too small; give 1 or more")
    return number


def _integer(text: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from error


def add_tasks_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), metavar="TASK", help=", ".join(TASKS))


def add_inference_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say on which examples a model's tasks are run, and by which engine."""
    parser.add_argument("--data_dir", type=Path, help="folder looked in for the sets' files before `datasets`")
    parser.add_argument("--output_dir", type=Path, default=Path(), help="root of every save_* folder")
    parser.add_argument(
        "--start_index",
        type=whole_number,
        default=0,
        help="first example of each task (slices of one run add up, see --overwrite)",
    )
    parser.add_argument("--end_index", type=whole_number, help="the example after the last of each task")
    parser.add_argument("--backend", choices=BACKENDS, default="auto", help="what completes the prompts")
    parser.add_argument("--replay_from", type=Path, help="with replay: folder of <task>.jsonl (id, completion)")
    parser.add_argument("--tensor_parallel_size", type=positive_number, default=2, help="vLLM: GPUs per layer")
    parser.add_argument("--pipeline_parallel_size", type=positive_number, default=1, help="vLLM: groups of layers")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace results of this name, and score this slice alone"
    )


def check_tasks_option(arguments: argparse.Namespace) -> None:
    """Raise `UserError` for a task that is named twice."""
    if arguments.tasks is not None and len(set(arguments.tasks)) < len(arguments.tasks):
        raise UserError("--tasks names a task twice; name each once")


def check_inference_options(arguments: argparse.Namespace) -> None:
    """Raise `UserError` for options that have no use together."""
    if arguments.backend == "replay" and arguments.replay_from is None:
        raise UserError("--backend replay needs --replay_from DIR, a folder that holds <task>.jsonl")
    if arguments.backend != "replay" and arguments.replay_from is not None:
        raise UserError("--replay_from has no use without --backend replay; add that or leave this out")
    if arguments.output_dir.exists() and not arguments.output_dir.is_dir():
        raise UserError(f"--output_dir {arguments.output_dir} is not a folder; name another place")
    if arguments.end_index is not None and arguments.end_index <= arguments.start_index:
        raise UserError("--end_index must be larger than --start_index")


def check_engine(arguments: argparse.Namespace) -> None:
    """Raise `UserError`, before any long work, where the engine asked for cannot run on this machine."""
    engine.check_engine_request(arguments.backend, arguments.tensor_parallel_size, arguments.pipeline_parallel_size)


def model_source(arguments: argparse.Namespace, folder: Path) -> ModelSource:
    """Completions from the model in `folder`, by the engine that the options ask for. Raises `UserError` for a folder
    that no engine can run; opening the engine raises it where a file of the model was changed after its fingerprint was
    taken."""
    check_model_folder(folder)
    backend = engine.resolve_backend(arguments.backend)
    states = file_states(model_files(folder))
    return ModelSource(
        backend=backend,
        model=str(folder),
        model_fingerprint=model_fingerprint(folder),
        weights_fingerprint=weights_fingerprint(folder),
        open_engine=lambda: _open_unchanged(arguments, backend, folder, states),
    )


def _open_unchanged(arguments: argparse.Namespace, backend: str, folder: Path, states: FileStates) -> engine.Engine:
    opened = engine.open_engine(backend, folder, arguments.tensor_parallel_size, arguments.pipeline_parallel_size)
    try:
        check_unchanged(states, file_states(model_files(folder)))
    except UserError:
        opened.close()
        raise
    return opened
