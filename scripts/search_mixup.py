"""Find M3's ratio: score many merges on one live engine, choose on a validation part, test the choice.

    python scripts/search_mixup.py --merge_instruct --merge_math --merging_method_name ties_merging --alpha 0.5 \
        --num_draws 20 --seed 0 --tensor_parallel_size 2
"""

import sys

if __name__ in ("__main__", "__mp_main__"):  # before the imports, which take a while
    from utils.interrupts import prepare_process

    prepare_process(__name__)

import argparse
import copy
import logging
import shlex
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path

from inference_llms.command_line import (
    add_engine_options,
    add_tasks_option,
    check_engine_dtype,
    check_tasks_option,
)
from inference_llms.engines.open_engine import check_engine_request, resolve_backend
from inference_llms.tasks import TASKS, TASKS_OF_ROLE, role_of_task
from model_merging_methods.command_line import (
    DEFAULTS,
    add_method_options,
    add_model_options,
    chosen_roles,
    merge_parameters,
    request_of_folders,
)
from model_merging_methods.merge_parameters import run_name
from model_merging_methods.merge_record import PRETRAINED, MergeRequest, input_states, list_input_files, tasks_name
from scripts.mixup_search.engines import Engines, OwnEngine
from scripts.mixup_search.live_merges import EngineOptions, Models
from scripts.mixup_search.proposals import DRAW_BY, Proposals
from scripts.mixup_search.report import report_lines, write_report
from scripts.mixup_search.search import Search
from scripts.mixup_search.search_space import OPTIONS, SearchSpace, parse_values
from scripts.mixup_search.splits import TaskParts, split_sentence, split_task
from scripts.mixup_search.store import SearchStore
from scripts.mixup_search.verdicts import check_verdicts
from utils.command_line import OneLineParser, positive_number
from utils.content_hashes import FileStates, files_hash, json_hash
from utils.errors import UserError, run_command_line
from utils.output_places import OutputPlaces
from utils.run_log import logged_run
from utils.whole_files import locked

log = logging.getLogger(__name__)

BACKENDS = ("auto", "vllm", "transformers")
DEFAULT_RAY_ENGINES = 2


def build_parser() -> argparse.ArgumentParser:
    parser = OneLineParser(description=__doc__.split("\n\n")[0], allow_abbrev=False)
    add_model_options(parser)
    merging = add_method_options(parser)
    for name in OPTIONS:
        merging.add_argument(
            f"--{name}", nargs="+", metavar="X", help=f"numbers, or a range low:high (default: {DEFAULTS[name]})"
        )

    searching = parser.add_argument_group("searching")
    searching.add_argument(
        "--draw_by", choices=DRAW_BY, default="mixup", help="how ratios are proposed (default: mixup, as M3 draws)"
    )
    searching.add_argument("--num_draws", type=positive_number, default=20, help="how many (default: 20)")
    add_tasks_option(searching)
    searching.add_argument("--data_dir", type=Path, help="folder looked in for the sets' files before `datasets`")
    searching.add_argument(
        "--num_validation", type=positive_number, default=100, help="examples of each task to choose by (default: 100)"
    )
    searching.add_argument(
        "--validation_dir", type=Path, help="files of the sets' names to take these from (default: the test sets)"
    )
    searching.add_argument("--num_test", type=positive_number, help="examples of each task to test by (default: all)")
    searching.add_argument(
        "--rungs",
        type=positive_number,
        nargs="+",
        default=[],
        metavar="N",
        help="score all draws on N examples, the better half on the next N or on --num_validation",
    )
    searching.add_argument(
        "--allow_code_execution", action="store_true", help="run the programs that models write for human_eval and mbpp"
    )
    searching.add_argument("--results", type=Path, metavar="FILE", help="where results are kept (SQLite)")
    searching.add_argument("--output_dir", type=Path, default=Path(), help="root of every save_* folder")
    searching.add_argument("--report", action="store_true", help="only make the report of what is known so far")
    searching.add_argument("--export", type=Path, metavar="FILE", help="only write the results so far as CSV")

    running = parser.add_argument_group("running")
    running.add_argument("--backend", choices=BACKENDS, default="auto", help="what completes the prompts")
    add_engine_options(running)
    running.add_argument("--pipeline_parallel_size", type=positive_number, default=1, help="vLLM: groups of layers")
    running.add_argument(
        "--distributed_executor_backend",
        choices=("mp", "ray"),
        help="vLLM: what starts its workers (ray: across nodes)",
    )
    running.add_argument("--ray", metavar="ADDRESS", help="spread the search over this Ray cluster (local: make one)")
    running.add_argument(
        "--ray_engines", type=positive_number, help=f"engines in the cluster (default: {DEFAULT_RAY_ENGINES})"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    options = build_parser().parse_args(arguments)
    check_tasks_option(options)
    with logged_run():
        words = sys.argv[1:] if arguments is None else arguments
        log.info("command: %s", shlex.join(["python", "scripts/search_mixup.py", *words]))
        if options.results is not None and (options.report or options.export is not None):
            tell(options.results, options)
            return
        roles = chosen_roles(options)
        space = search_space(options, roles)
        proposals = Proposals(space, options.draw_by, options.num_draws, options.seed or 0)
        proposals.check()
        results = options.results or default_results(options, roles, proposals)
        if options.report or options.export is not None:
            tell(results, options)
            return
        run(options, roles, proposals, results)


def run(options: argparse.Namespace, roles: Sequence[str], proposals: Proposals, results: Path) -> None:
    """All that can be checked first; then the search, as far as the results file does not hold it yet."""
    check_engines(options)
    check_rungs(options)
    request = request_of_folders(options, roles, proposals.space.base)
    tasks = options.tasks or [task for role in roles for task in TASKS_OF_ROLE[role]]
    of_role = {task: role_of_task(task, roles) for task in tasks}
    parts = {
        task: split_task(
            TASKS[task],
            options.data_dir,
            options.validation_dir,
            options.num_validation,
            options.num_test,
            options.seed or 0,
        )
        for task in tasks
    }
    check_verdicts({task: [*of.validation, *of.test] for task, of in parts.items()}, options.allow_code_execution)
    rungs = [*options.rungs, options.num_validation]
    search = Search(proposals, roles, parts, of_role, rungs)
    states = input_states(request)
    identity = {
        "roles": list(roles),
        "tasks": tasks,
        "role_of_task": of_role,
        "draw_by": proposals.draw_by,
        "num_draws": proposals.num_draws,
        "seed": proposals.seed,
        "space": asdict(proposals.space),
        "rungs": rungs,
        "validation": {task: len(of.validation) for task, of in parts.items()},
        "test": {task: len(of.test) for task, of in parts.items()},
        "examples": {task: digest_of_examples(of) for task, of in parts.items()},
        "split": split_sentence(options.num_validation, options.validation_dir, options.num_test, proposals.seed),
        "models_dir": None if options.models_dir is None else str(options.models_dir),
        "allow_unrelated": options.allow_unrelated,
        "models": {role: getattr(options, f"{role}_model") for role in (PRETRAINED, *roles)},
        "fingerprints": {role: files_hash(list_input_files(folder)) for role, folder in request.inputs.items()},
        "backend": resolve_backend(options.backend),
        "engine_dtype": options.engine_dtype,
        "max_tokens": options.max_tokens,
    }
    # Not brought in by the processes that vLLM starts, which import this script.
    from model_merging_methods.candidate_weights import CandidateMerges

    merges = CandidateMerges(request.pretrained.absolute(), absolute(request.finetuned))
    merges.check(proposals.space.base, options.allow_unrelated)
    if "alpaca_eval" in tasks:
        log.info("alpaca_eval has no judge here: an answer is right if it is the set's reference answer")
    with closing(open_engines(options, request, states, of_role)) as engines, SearchStore(results, identity) as store:
        search.run(store, engines)
        if isinstance(engines, OwnEngine) and engines.live.seconds.replacements:
            log.info(engines.live.seconds.told())
        show(store, results)


def tell(results: Path, options: argparse.Namespace) -> None:
    """What a results file holds so far: exported, reported, or both."""
    with SearchStore.open_existing(results) as store:
        if options.export is not None:
            store.export_csv(options.export)
            log.info("exported: %s", options.export)
        if options.report:
            show(store, results)


def check_engines(options: argparse.Namespace) -> None:
    """Raise UserError for engines that this machine, or none, can give."""
    executor = options.distributed_executor_backend
    check_engine_dtype(options)
    if options.ray_engines is not None and options.ray is None:
        raise UserError("--ray_engines has no use without --ray; add that or leave it out")
    if executor is not None and resolve_backend(options.backend) != "vllm":
        raise UserError("--distributed_executor_backend has no use without vLLM; add --backend vllm or leave it out")
    if executor == "ray" and options.ray is not None:
        raise UserError(
            "--ray gives each engine a machine, --distributed_executor_backend ray spreads one over several; give one "
            "of the two"
        )
    if options.ray is None:  # a cluster tells itself what it has
        sizes = (options.tensor_parallel_size, options.pipeline_parallel_size)
        check_engine_request(options.backend, *sizes, executor)


def search_space(options: argparse.Namespace, roles: Sequence[str]) -> SearchSpace:
    """What the options range over, around the merge that they name. Raises UserError for what makes no sense."""
    if options.alpha is not None and options.draw_by != "mixup":
        raise UserError(f"--alpha has no use with --draw_by {options.draw_by}, which draws no Beta; leave it out")
    values = {name: parse_values(name, getattr(options, name) or [str(DEFAULTS[name])]) for name in OPTIONS}
    if min(values["alpha"].numbers) <= 0:
        raise UserError(f"--alpha {' '.join(options.alpha)}: 0 or less always draws the first model alone; give more")
    plain = copy.copy(options)
    plain.mixup, plain.mixup_lambda = True, None
    for name in OPTIONS:
        setattr(plain, name, None if getattr(options, name) is None else values[name].plain_choice)
    base = replace(merge_parameters(plain, roles), mixup=None, seed=options.seed or DEFAULTS["seed"])
    space = SearchSpace(len(roles), base, **values)
    space.check()
    return space


def check_rungs(options: argparse.Namespace) -> None:
    """Raise UserError for rungs that do not rise to the whole validation part, or have no use."""
    rungs = [*options.rungs, options.num_validation]
    if any(lower >= higher for lower, higher in pairwise(rungs)):
        raise UserError(
            f"--rungs {' '.join(map(str, options.rungs))}: give numbers that rise, all below --num_validation "
            f"{options.num_validation}"
        )
    if options.rungs and options.draw_by == "optimise":
        raise UserError("--rungs has no use with --draw_by optimise, which needs each score before the next draw")


def default_results(options: argparse.Namespace, roles: Sequence[str], proposals: Proposals) -> Path:
    name = f"{run_name(proposals.space.base, len(roles))}_{proposals.draw_by}_seed_{proposals.seed}"
    return OutputPlaces(options.output_dir, tasks_name(roles), name).mixup_search()


def open_engines(
    options: argparse.Namespace, request: MergeRequest, states: FileStates, role_of_task: Mapping[str, str]
) -> Engines:
    models = Models(request.pretrained.absolute(), absolute(request.finetuned), None if options.ray else states)
    engine = EngineOptions(
        resolve_backend(options.backend),
        options.tensor_parallel_size,
        options.pipeline_parallel_size,
        options.distributed_executor_backend,
        options.engine_dtype,
        options.max_tokens,
    )
    if options.ray is None:
        return OwnEngine(models, engine, role_of_task)
    from scripts.mixup_search.ray_engines import RayEngines

    return RayEngines(options.ray, options.ray_engines or DEFAULT_RAY_ENGINES, models, engine, role_of_task)


def absolute(folders: Mapping[str, Path]) -> dict[str, Path]:
    return {role: folder.absolute() for role, folder in folders.items()}


def digest_of_examples(parts: TaskParts) -> str:
    """Of what is asked and what is right, in its order."""
    asked = [[[example.id, example.prompt, example.row] for example in part] for part in (parts.validation, parts.test)]
    return json_hash(asked)


def show(store: SearchStore, results: Path) -> None:
    """The report, as files and on the screen."""
    folder = results.with_name(f"{results.name.removesuffix('.sqlite')}_report")
    with locked(folder, waits=True):  # another process of the search may end just now
        write_report(store, folder)
    for line in report_lines(store):
        log.info(line)
    log.info("results: %s", results)
    log.info("report: %s", folder / "report.html")


if __name__ == "__main__":
    sys.exit(run_command_line(main))
