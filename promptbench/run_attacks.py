"""Attack a task's prompt from the command line: write the results as JSON and print a table."""

import argparse
import hashlib
import importlib
import json
import logging
import pkgutil
import random
import shlex
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from inference_llms.command_line import add_engine_options, check_engine, check_engine_dtype, model_source
from inference_llms.engines.engine import Sampling
from inference_llms.model_folder import output_places
from inference_llms.prompt_format import PromptFormat, add_prompt_options, prompt_format
from inference_llms.run_tasks import PACKAGES, ModelSource
from promptbench import attacks
from promptbench.attack import Attack, AttackParts, MissingPart
from promptbench.prompt_accuracy import SAMPLING, PromptAccuracy
from promptbench.prompt_task import PromptTask, Sample
from promptbench.report import attack_report, health_lines, prompt_lines, result_table, why_no_drop_rate
from promptbench.search import search
from utils.command_line import OneLineParser, options_on_record, positive_number, whole_number
from utils.content_hashes import content_hash, folder_hash
from utils.errors import UserError
from utils.json_files import read_json_object
from utils.machine import package_versions
from utils.model_folders import find_model_folder
from utils.run_log import logged_run
from utils.whole_files import locked, write_json

log = logging.getLogger(__name__)

ATTACK_NAMES = tuple(sorted(module.name for module in pkgutil.iter_modules(attacks.__path__)))
ALL = "all"
BACKENDS = ("auto", "vllm", "transformers")
PACKAGES_OF_ATTACKS = ("HanTa",)
EXAMPLES = """
examples:
  python promptbench/{task}.py --model_path DIR --attack_method stresstest deepwordbug
  python promptbench/{task}.py --model_path DIR --attack_method all --word_vectors FILE --num_samples 200
"""


def build_parser(task: PromptTask) -> argparse.ArgumentParser:
    parser = OneLineParser(
        description=f"Find the prompt for {task.name} that lowers a model's accuracy most, and report the drop.",
        epilog=EXAMPLES.format(task=task.name),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    main_options = parser.add_argument_group("model and attacks")
    main_options.add_argument("--model_path", type=Path, required=True, help="Hugging Face model folder, or a hub id")
    main_options.add_argument(
        "--attack_method",
        nargs="+",
        required=True,
        choices=(*ATTACK_NAMES, ALL),
        metavar="ATTACK",
        help=f"{', '.join(ATTACK_NAMES)}; or {ALL}: every attack whose models and files are available",
    )
    main_options.add_argument("--seed", type=whole_number, default=0, help="seed of all random draws (default: 0)")
    main_options.add_argument(
        "--query_budget", type=positive_number, help="largest number of prompts scored per attack (default: no limit)"
    )
    parts = parser.add_argument_group("models and files that some attacks need")
    parts.add_argument(
        "--mask_lm",
        default=AttackParts.mask_lm,
        metavar="PATH_OR_HUB_ID",
        help="masked language model; for bertattack (default: %(default)s)",
    )
    parts.add_argument(
        "--sentence_encoder",
        default=AttackParts.sentence_encoder,
        metavar="PATH_OR_HUB_ID",
        help="sentence encoder; for bertattack, textbugger, textfooler (default: %(default)s)",
    )
    parts.add_argument(
        "--word_vectors",
        type=Path,
        metavar="FILE",
        help="a word and its numbers on each line; for textbugger, textfooler",
    )
    data = parser.add_argument_group("data and output")
    data.add_argument(
        "--data_dir", type=Path, metavar="DIR", help=f"folder with {task.name}_dev.tsv (default: download the set)"
    )
    data.add_argument(
        "--num_samples", type=positive_number, help="size of a random part of the set, drawn by --seed (default: all)"
    )
    data.add_argument("--output_dir", type=Path, default=Path(), help="root of all save_* folders (default: .)")
    add_prompt_options(data)
    engine = parser.add_argument_group("engine")
    engine.add_argument(
        "--backend",
        choices=BACKENDS,
        default="auto",
        help="engine that runs the model; auto: vllm if it is installed and there is a GPU, else transformers",
    )
    add_engine_options(engine)
    parser.set_defaults(pipeline_parallel_size=1)
    return parser


def main(task: PromptTask, arguments: Sequence[str] | None = None) -> None:
    """Run the attacks of a command line on one task's prompt."""
    options = build_parser(task).parse_args(arguments)
    with logged_run():
        words = sys.argv[1:] if arguments is None else arguments
        command = shlex.join(["python", f"promptbench/{task.name}.py", *words])
        log.info("command: %s", command)
        run_attacks(task, options, command)


def run_attacks(task: PromptTask, options: argparse.Namespace, command: str) -> None:
    """Check everything first. Then run one search per attack on the same engine, each with a separate result file."""
    task.check_prompts()
    check_engine_dtype(options)
    check_engine(options)
    folder = find_model_folder(str(options.model_path))
    source = model_source(options, folder)
    places = output_places(folder, options.output_dir)
    samples = chosen_samples(task, options)
    opened, missing = open_attacks(task, options)
    asked = prompt_format(options)
    sampling = (SAMPLING if asked.is_paper else replace(SAMPLING, stop=())).capped(options.max_tokens)
    identity = completions_identity(source, sampling, samples, asked)
    paths = {name: places.adversarial_result(task.name, name) for name in opened}
    settings = {
        name: {
            **identity,
            "prompt": task.prompt,
            "number_of_samples": len(samples),
            "seed": options.seed,
            "query_budget": options.query_budget,
            **settings_of_parts(options, parts_of_attack(name)),
        }
        for name in opened
    }

    reports = []
    completions = places.adversarial_completions(task.name, short_hash(identity))
    with ExitStack() as held:
        for name, path in paths.items():
            held.enter_context(locked(path))
            check_same_settings(path, settings[name])
        accuracy = held.enter_context(
            closing(PromptAccuracy(task, samples, completions, identity, source.open_engine, sampling, asked))
        )
        nothing_right = why_no_drop_rate(task, source.model, accuracy)
        budget = options.query_budget
        if nothing_right is not None:
            log.info(nothing_right)
            budget = 1  # the clean prompt alone
        for name, attack in opened.items():
            result = search(attack, task.prompt, task.protected_words, accuracy, budget)
            reports.append(attack_report(name, result, accuracy))
            run = {
                "task": task.name,
                "model": source.model,
                "command": command,
                "options": options_on_record(options),
                "packages": package_versions((*PACKAGES, *PACKAGES_OF_ATTACKS)),
            }
            write_json(paths[name], {**run, "settings": settings[name], **reports[-1]})
            for line in prompt_lines(reports[-1]) if nothing_right is None else ():
                log.info(line)
    for line in [*result_table(reports), *health_lines(reports)]:
        log.info(line)
    for name, reason in missing.items():
        log.info("not run: %s: %s", name, reason)
    log.info("results: %s", places.adversarial_result(task.name, "*").parent)


def chosen_samples(task: PromptTask, options: argparse.Namespace) -> Sequence[Sample]:
    """The whole set, or `--num_samples` of it in the set's order."""
    samples = task.load_samples(options.data_dir)
    if options.num_samples is None:
        return samples
    if options.num_samples > len(samples):
        raise UserError(f"--num_samples {options.num_samples}: {task.name} has {len(samples)} samples; give fewer")
    return [samples[i] for i in sorted(random.Random(options.seed).sample(range(len(samples)), options.num_samples))]


def open_attacks(task: PromptTask, options: argparse.Namespace) -> tuple[dict[str, Attack], dict[str, str]]:
    """The requested attacks by name, and for attacks of `all` that cannot run, the reason.

    Raises MissingPart if an attack requested by name lacks a part."""
    parts = AttackParts(task, options.seed, options.mask_lm, options.sentence_encoder, options.word_vectors)
    named = [name for name in dict.fromkeys(options.attack_method) if name != ALL]
    opened: dict[str, Attack] = {}
    missing: dict[str, str] = {}
    for name in ATTACK_NAMES if ALL in options.attack_method else named:
        try:
            opened[name] = _module(name).open_attack(parts)
        except MissingPart as error:
            if name in named:
                raise
            missing[name] = str(error)
    return opened, missing


def parts_of_attack(name: str) -> tuple[str, ...]:
    """The fields of `AttackParts` that an attack depends on, besides task and seed."""
    return getattr(_module(name), "PARTS", ())


def settings_of_parts(options: argparse.Namespace, parts: Sequence[str]) -> dict[str, str]:
    """The models and files that an attack uses, with hashes of those on this machine."""
    settings = {}
    for part in parts:
        settings[part] = str(getattr(options, part))
        path = Path(settings[part])
        if path.exists():
            settings[f"{part}_hash"] = folder_hash(path) if path.is_dir() else content_hash(path)
    return settings


def _module(name: str):
    return importlib.import_module(f"{attacks.__name__}.{name}")


def completions_identity(
    source: ModelSource, sampling: Sampling, samples: Sequence[Sample], asked: PromptFormat
) -> dict[str, Any]:
    """Everything that must be equal for stored completions to be reused."""
    return {
        "backend": source.backend,
        "model_fingerprint": source.model_fingerprint,
        "weights_fingerprint": source.weights_fingerprint,
        "sampling": {"max_tokens": sampling.max_tokens, "stop": list(sampling.stop), "temperature": 0.0},
        **({} if source.unusual_dtype is None else {"engine_dtype": source.unusual_dtype}),
        **asked.on_record(),
        "samples": short_hash([[sample.text, sample.label] for sample in samples]),
    }


def short_hash(value: Any) -> str:
    """A short hash of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def check_same_settings(path: Path, settings: Mapping[str, Any]) -> None:
    """Raise UserError if `path` holds a result with other settings."""
    if not path.is_file():
        return
    stored = read_json_object(path, "remove it").get("settings")
    if stored != settings:
        known = stored if isinstance(stored, dict) else {}
        different = [key.replace("_", " ") for key in settings if known.get(key) != settings[key]]
        raise UserError(
            f"{path} has the result of another run (another {' and '.join(different)}); choose another --output_dir, "
            "or remove it"
        )
