"""Find M3's ratio: score many merges on one engine, choose on a validation part, and test the choice.

examples:
  draw λ ~ Beta(0.5, 0.5) 20 times for task arithmetic, on two GPUs:
    python scripts/search_mixup.py --merge_instruct --merge_math --merging_method_name task_arithmetic --alpha 0.5 \\
        --num_draws 20 --seed 0 --tensor_parallel_size 2
  try 11 even steps of λ on the tiny models, on the CPU:
    python scripts/search_mixup.py --merge_instruct --merge_math --pretrained_model scripts/tiny_zoo/base \\
        --instruct_model scripts/tiny_zoo/instruct --math_model scripts/tiny_zoo/math \\
        --data_dir scripts/tiny_zoo/data --merging_method_name average_merging --draw_by grid --num_draws 11 \\
        --tasks alpaca_eval gsm8k --num_validation 30 --backend transformers
"""

import sys

if __name__ in ("__main__", "__mp_main__"):  # before the imports, which take a while
    from utils.interrupts import prepare_process

    prepare_process(__name__)

import argparse
import copy
import logging
import shlex
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

from inference_llms.command_line import (
    add_engine_options,
    add_tasks_option,
    check_chat_template,
    check_engine_dtype,
    check_tasks_option,
)
from inference_llms.engines.open_engine import check_engine_request, has_gpus, resolve_backend
from inference_llms.model_folder import check_tokenizer
from inference_llms.prompt_format import add_prompt_options, prompt_format
from inference_llms.tasks import find_task, role_of_task, tasks_of_models
from model_merging_methods.before_download import check_before_download
from model_merging_methods.command_line import (
    DEFAULTS,
    add_declared_options,
    add_method_options,
    add_model_options,
    chosen_method,
    chosen_roles,
    declared_options,
    given_models,
    merge_parameters,
    option_by_model,
    request_of_folders,
    words_by_model,
)
from model_merging_methods.masks import MASKS
from model_merging_methods.merge_request import list_input_files, run_name, tasks_name
from model_merging_methods.method import Option
from model_merging_methods.methods import METHODS
from scripts.mixup_search.hours import hours_lines
from scripts.mixup_search.live_merges import ENGINE_OPTIONS, EngineSetup, LiveMerges, check_verdicts
from scripts.mixup_search.ray_engines import RayEngines
from scripts.mixup_search.report import report_lines, write_report
from scripts.mixup_search.search import Search
from scripts.mixup_search.search_space import (
    ALPHA,
    DRAW_BY,
    POINT,
    Proposals,
    SearchSpace,
    Values,
    of_model,
    option_and_model,
    parse_values,
)
from scripts.mixup_search.splits import split_sentence, split_task
from scripts.mixup_search.store import SearchStore
from utils.command_line import OneLineParser, positive_number
from utils.content_hashes import files_hash, json_hash
from utils.errors import UserError, run_command_line
from utils.interrupts import report_when_terminated
from utils.output_places import OutputPlaces
from utils.run_log import logged_run
from utils.whole_files import locked

log = logging.getLogger(__name__)


def build_parser() -> argparse.ArgumentParser:
    description, _, examples = __doc__.partition("\n\n")
    layout = argparse.RawDescriptionHelpFormatter
    parser = OneLineParser(description=description, epilog=examples, formatter_class=layout, allow_abbrev=False)
    add_model_options(parser)
    merging = add_method_options(parser)
    text = f"{ALPHA.about.text}: numbers, or a range low:high (default: {ALPHA.default})"
    merging.add_argument("--alpha", nargs="+", metavar="X", help=text)
    add_declared_options(parser, declared_options(), takes_several=True)

    def add(group: argparse._ArgumentGroup, name: str, text: str, **details) -> None:
        group.add_argument(f"--{name}", help=text, **details)

    group = parser.add_argument_group("searching")
    add(group, "draw_by", "how to propose ratios (default: mixup, as M3 draws)", choices=DRAW_BY, default="mixup")
    text = "search the options alone, without M3's ratios; with nothing to vary, score that one merge"
    group.add_argument("--without_mixup", action="store_true", help=text)
    text = "let the ratio of two models change over the layers: its value at N points, each searched from 0 to 1"
    add(group, "ratio_points", text, type=positive_number, metavar="N")
    add(group, "num_draws", "number of draws (default: 20)", type=positive_number, default=20)
    add_tasks_option(group)
    add(group, "data_dir", "folder with the sets' files (default: download with `datasets`)", type=Path)
    text = "examples of each task that choose a draw (default: 100)"
    add(group, "num_validation", text, type=positive_number, default=100)
    text = "folder with files of the same names for these examples (default: the test sets)"
    add(group, "validation_dir", text, type=Path)
    add(group, "num_test", "examples of each task that test the choice (default: all others)", type=positive_number)
    add_prompt_options(group)
    text = "score all draws on N examples, the better half on the next N, and so on up to --num_validation"
    add(group, "rungs", text, type=positive_number, nargs="+", default=[], metavar="N")
    text = "run the programs that models write for human_eval and mbpp"
    group.add_argument("--allow_code_execution", action="store_true", help=text)

    group = parser.add_argument_group("results")
    add(group, "results", "SQLite file for the results (default: in save_mixup_searches)", type=Path, metavar="FILE")
    add(group, "output_dir", "root of every save_* folder (default: this folder)", type=Path, default=Path())
    group.add_argument("--report", action="store_true", help="only report the results so far")
    add(group, "export", "only write the results so far as CSV", type=Path, metavar="FILE")

    group = parser.add_argument_group("running")
    text = "engine; auto: vllm if it is installed and there is a GPU, else transformers (default: auto)"
    add(group, "backend", text, choices=("auto", "vllm", "transformers"), default="auto")
    add_engine_options(group)
    text = "vLLM: pipeline stages, each with its own GPUs (default: 1)"
    add(group, "pipeline_parallel_size", text, type=positive_number, default=1)
    text = "vLLM: how to start workers; ray spreads one engine over machines (default: vLLM's choice)"
    add(group, "distributed_executor_backend", text, choices=("mp", "ray"))
    add(group, "ray", "spread the search over this Ray cluster (local: start one here)", metavar="ADDRESS")
    add(group, "ray_engines", "engines in the Ray cluster (default: 2)", type=positive_number)
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    options = build_parser().parse_args(arguments)
    check_tasks_option(options)
    with logged_run():
        words = sys.argv[1:] if arguments is None else arguments
        log.info("command: %s", shlex.join(["python", "scripts/search_mixup.py", *words]))
        if options.report or options.export is not None:
            report_and_export(options)
        else:
            search(options)


def requested_draws(options: argparse.Namespace) -> tuple[list[str], Proposals, Path]:
    """The models' roles, the draws, and the file for the results."""
    roles = chosen_roles(options)
    space = search_space(options, roles)
    proposals = Proposals(space, options.draw_by, options.num_draws, options.seed or 0)
    proposals.check()
    how = f"without_mixup_{proposals.draw_by}" if space.without_mixup else proposals.draw_by
    if space.points:
        how = f"{len(space.points)}_points_{how}"
    name = f"{run_name(space.base, len(roles))}_{how}_seed_{proposals.seed}"
    default = OutputPlaces(options.output_dir, tasks_name(roles), name).mixup_search()
    is_by_model = any(option_and_model(option)[1] is not None for option in space.options)
    if is_by_model and options.results is None and not holds_values(default, space):
        name += f"_values_{json_hash(space.to_fields()['values'])[:8]}"
        default = OutputPlaces(options.output_dir, tasks_name(roles), name).mixup_search()
    return roles, proposals, options.results or default


def holds_values(results: Path, space: SearchSpace) -> bool:
    """Whether an earlier version, whose names of files had no values, began this space's search there."""
    if not results.exists():
        return False
    with SearchStore(results) as store:
        return store.identity["space"].get("values") == space.to_fields()["values"]


def search_space(options: argparse.Namespace, roles: Sequence[str]) -> SearchSpace:
    """The search space of the options. Raises UserError for options that do not fit together."""
    method, mask_name = chosen_method(options)
    has_ratios = METHODS[method].takes_ratios and len(roles) > 1 and not options.without_mixup
    if options.alpha is not None and options.without_mixup:
        raise UserError("--alpha has no effect with --without_mixup, which draws no ratios; remove one of them")
    if options.alpha is not None and not has_ratios:
        raise UserError(f"--alpha has no effect on {method} of {len(roles)} models, which takes no ratios; remove it")
    if options.ratio_points is not None:
        check_ratio_points(options, method, len(roles))
    if options.alpha is not None and options.draw_by != "mixup":
        raise UserError(f"--alpha has no effect with --draw_by {options.draw_by}, which draws no Beta; remove it")
    alpha = parse_values(ALPHA, options.alpha or [str(ALPHA.default)])
    if min(alpha.numbers) <= 0:
        raise UserError(
            f"--alpha {' '.join(options.alpha)}: 0 or less draws the first model alone; give a positive number"
        )
    plain, varied = copy.copy(options), {}
    plain.alpha, plain.mixup, plain.mixup_lambda, plain.ratio_by_layer = None, has_ratios, None, None
    own = {**METHODS[method].options, **(MASKS[mask_name].options if mask_name else {})}
    for name, by_owner in declared_options().items():
        words = getattr(options, name)
        if not isinstance(words, list):
            continue  # a switch or a choice
        if any("=" in word for word in words):
            if name in own:  # else `merge_parameters` refuses it
                target = option_by_model(own[name], METHODS[method])
                by_model = values_by_model(own[name], words, roles, target is not None)
                setattr(plain, name, [f"{role}={values.plain_choice}" for role, values in by_model.items()])
                several = {role: values for role, values in by_model.items() if len(values.numbers) > 1}
                varied |= {of_model(target, roles.index(role)): values for role, values in several.items()}
            continue
        values = parse_values(own.get(name) or next(iter(by_owner.values())), words)
        if len(values.numbers) > 1:
            varied[name] = values
        if name in own:
            setattr(plain, name, values.plain_choice)
        elif name in varied:
            setattr(plain, name, None)  # `check` refuses it
    base = replace(merge_parameters(plain, roles), mixup=None, seed=options.seed or DEFAULTS["seed"])
    if options.ratio_points is not None:
        varied |= {f"{POINT}{place}": point_values(options) for place in range(options.ratio_points)}
    space = SearchSpace(len(roles), base, alpha, varied, options.without_mixup)
    space.check()
    return space


def values_by_model(
    option: Option, words: Sequence[str], roles: Sequence[str], takes_models: bool
) -> dict[str, Values]:
    """The values of an option given as NAME=X, by model in model order."""
    found = words_by_model(option.name, words, roles, takes_models)
    return {role: parse_values(option, found[role], role) for role in roles if role in found}


def check_ratio_points(options: argparse.Namespace, method: str, number_of_models: int) -> None:
    """Raise UserError for points of a ratio that the merge does not have."""
    given = f"--ratio_points {options.ratio_points}"
    if options.ratio_points < 2:
        raise UserError(f"{given}: give 2 or more; one ratio for all layers is searched without the option")
    if number_of_models != 2 or not METHODS[method].takes_ratios:
        raise UserError(f"{given}: needs two models and a method that takes ratios; remove it")
    for name in ("without_mixup", "alpha"):
        if getattr(options, name):
            raise UserError(f"{given}: has no Beta and searches the ratio itself; remove --{name}")


def point_values(options: argparse.Namespace) -> Values:
    """The values of each point: all from 0 to 1, or on a grid as many even steps as --num_draws allows."""
    if options.draw_by != "grid":
        return Values((0.0, 1.0), is_range=True)
    steps = 2
    while (steps + 1) ** options.ratio_points <= options.num_draws:
        steps += 1
    return Values(tuple(step / (steps - 1) for step in range(steps)))


def report_and_export(options: argparse.Namespace) -> None:
    """Report or export the results so far."""
    results = options.results or requested_draws(options)[2]
    with SearchStore(results) as store:
        if options.export is not None:
            store.export_csv(options.export)
            log.info("exported: %s", options.export)
        if options.report:
            show_report(store, results)


def show_report(store: SearchStore, results: Path, devices: int = 1) -> None:
    """Write the report's files and log its text."""
    page = write_report(store, results.with_name(f"{results.name.removesuffix('.sqlite')}_report"))
    for line in (*report_lines(store, devices), f"results: {results}", f"report: {page}"):
        log.info(line)


def search(options: argparse.Namespace) -> None:
    """Check everything that can be checked, then run the part of the search that the results file lacks."""
    roles, proposals, results = requested_draws(options)
    check_engines(options)
    check_rungs(options)
    if results.is_dir():
        raise UserError(f"--results {results}: is a folder; name a file")
    with locked(results):
        search_into(results, options, roles, proposals)


def search_into(results: Path, options: argparse.Namespace, roles: Sequence[str], proposals: Proposals) -> None:
    merge = proposals.space.base
    check_before_download(lambda headers_in: request_of_folders(options, roles, merge, headers_in))
    request = request_of_folders(options, roles, merge)
    tasks = options.tasks or tasks_of_models(roles)
    roles_of_tasks = {task: role_of_task(task, roles) for task in tasks}
    sizes = (options.num_validation, options.num_test, proposals.seed)
    folders = (options.data_dir, options.validation_dir)
    asked = prompt_format(options)
    for role in dict.fromkeys(roles_of_tasks.values()):
        check_chat_template(check_tokenizer([request.finetuned[role], request.pretrained]), asked)
    include_path = options.lm_eval_include_path
    known = {task: find_task(task, include_path).in_format(asked) for task in tasks}
    parts = {name: split_task(task, *folders, *sizes) for name, task in known.items()}
    check_verdicts(
        known, {task: [*part.validation, *part.test] for task, part in parts.items()}, options.allow_code_execution
    )
    states = request.input_states()
    identity = {
        "roles": list(roles),
        "tasks": tasks,
        "role_of_task": roles_of_tasks,
        **proposals.identity(),
        "space": proposals.space.to_fields(),
        "rungs": [*options.rungs, options.num_validation],
        "validation": {task: len(part.validation) for task, part in parts.items()},
        "test": {task: len(part.test) for task, part in parts.items()},
        "examples": {task: part.digest() for task, part in parts.items()},
        "split": split_sentence(options.validation_dir, *sizes) + ("" if asked.is_paper else f" Prompts: {asked}."),
        "models_dir": None if options.models_dir is None else str(options.models_dir),
        "allow_unrelated": options.allow_unrelated,
        "models": given_models(options, roles),
        "fingerprints": {role: files_hash(list_input_files(folder)) for role, folder in request.inputs.items()},
        "backend": resolve_backend(options.backend),
        "engine_dtype": options.engine_dtype,
        "max_tokens": options.max_tokens,
        **asked.on_record(),
        **({"lm_eval": found} if (found := {name: task.about for name, task in known.items() if task.about}) else {}),
    }
    # Imported here because the processes that vLLM starts import this script.
    from model_merging_methods.candidate_weights import CandidateMerges

    finetuned = {role: folder.absolute() for role, folder in request.finetuned.items()}
    models = (request.pretrained.absolute(), finetuned, roles_of_tasks)
    chosen = {name: getattr(options, name) for name in ENGINE_OPTIONS}
    prompts = (asked, options.max_tokens, include_path)
    setup = EngineSetup(*models, identity["backend"], None if options.ray else states, *prompts, **chosen)
    CandidateMerges(setup.pretrained, setup.finetuned).check(proposals.space.base, options.allow_unrelated)
    if "alpaca_eval" in tasks:
        log.info("alpaca_eval is scored without a judge: an answer is right if it equals the set's reference answer")
    engines = RayEngines(options.ray, options.ray_engines or 2, setup) if options.ray else LiveMerges(setup)
    devices = (options.tensor_parallel_size or 1) * options.pipeline_parallel_size if has_gpus() else 1
    with closing(engines), SearchStore(results, identity) as store:
        hours = partial(hours_lines, store, devices, engines.number)
        report_when_terminated(hours)
        try:
            Search(proposals, parts, store, engines).run()
        except BaseException:  # a stop: say what is left
            for line in hours():
                log.info(line)
            raise
        if spent := engines.spent():
            log.info(spent)
        show_report(store, results, devices)


def check_engines(options: argparse.Namespace) -> None:
    """Raise UserError for engines that do not exist or cannot run on this machine."""
    executor = options.distributed_executor_backend
    check_engine_dtype(options)
    if options.ray_engines is not None and options.ray is None:
        raise UserError("--ray_engines has no effect without --ray; add that or remove it")
    if executor is not None and resolve_backend(options.backend) != "vllm":
        raise UserError("--distributed_executor_backend has no effect without vLLM; add --backend vllm or remove it")
    if executor == "ray" and options.ray is not None:
        raise UserError(
            "--ray gives each engine a machine, --distributed_executor_backend ray spreads one over several; give one "
            "of the two"
        )
    if options.ray is None:  # otherwise Ray knows the machines
        sizes = (options.tensor_parallel_size, options.pipeline_parallel_size)
        check_engine_request(options.backend, *sizes, executor)


def check_rungs(options: argparse.Namespace) -> None:
    """Raise UserError for rungs that do not increase up to the whole validation part, or have no effect."""
    rungs = [*options.rungs, options.num_validation]
    if any(lower >= higher for lower, higher in pairwise(rungs)):
        raise UserError(
            f"--rungs {' '.join(map(str, options.rungs))}: give increasing numbers, all below --num_validation "
            f"{options.num_validation}"
        )
    if options.rungs and options.draw_by == "optimise":
        raise UserError("--rungs has no effect with --draw_by optimise, which scores a draw before the next; remove it")


if __name__ == "__main__":
    sys.exit(run_command_line(main))
