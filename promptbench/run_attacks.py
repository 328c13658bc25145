"""The command line of every attacked task: attacks on its prompt, results as JSON, a table."""

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
from pathlib import Path
from typing import Any

from inference_llms.command_line import (
    add_engine_options,
    check_engine,
    check_engine_dtype,
    model_source,
)
from inference_llms.engines.engine import Sampling
from inference_llms.model_folder import output_places
from inference_llms.run_tasks import PACKAGES, ModelSource
from promptbench import attacks
from promptbench.attack import Attack, AttackParts
from promptbench.missing_part import MissingPart
from promptbench.prompt_accuracy import SAMPLING, PromptAccuracy
from promptbench.prompt_task import PromptTask, Sample
from promptbench.report import attack_report, check_clean_prompt, health_lines, prompt_lines, table
from promptbench.search import search
from utils.command_line import OneLineParser, positive_number, whole_number
from utils.content_hashes import content_hash, folder_hash
from utils.errors import UserError
from utils.json_files import read_json_object
from utils.model_folders import find_model_folder
from utils.package_versions import package_versions
from utils.run_log import logged_run
from utils.whole_files import locked, write_json

log = logging.getLogger(__name__)

ATTACK_NAMES = tuple(sorted(module.name for module in pkgutil.iter_modules(attacks.__path__)))
ALL = "all"
BACKENDS = ("auto", "vllm", "transformers")
PACKAGES_OF_ATTACKS = ("sentence-transformers", "HanTa")


def build_parser(task: PromptTask) -> argparse.ArgumentParser:
    parser = OneLineParser(description=f"Attack the prompt of {task.name}.", allow_abbrev=False)
    parser.add_argument("--model_path", type=Path, required=True, help="a Hugging Face model folder, or a hub id")
    parser.add_argument(
        "--attack_method",
        nargs="+",
        required=True,
        choices=(*ATTACK_NAMES, ALL),
        metavar="ATTACK",
        help=f"{', '.join(ATTACK_NAMES)}; or {ALL}: those whose parts are there",
    )
    parser.add_argument("--mask_lm", default=AttackParts.mask_lm, metavar="PATH_OR_HUB_ID", help="of bertattack")
    parser.add_argument(
        "--sentence_encoder", default=AttackParts.sentence_encoder, metavar="PATH_OR_HUB_ID", help="of similarities"
    )
    parser.add_argument("--word_vectors", type=Path, help="of textfooler and textbugger: a word and its numbers a line")
    parser.add_argument("--data_dir", type=Path, help=f"folder looked in for {task.name}_dev.tsv before `datasets`")
    parser.add_argument("--num_samples", type=positive_number, help="as many samples, drawn by the seed (default: all)")
    parser.add_argument("--seed", type=whole_number, default=0, help="of all that is drawn (default: 0)")
    parser.add_argument("--query_budget", type=positive_number, help="prompts scored by an attack at most")
    parser.add_argument("--output_dir", type=Path, default=Path(), help="root of every save_* folder")
    parser.add_argument("--backend", choices=BACKENDS, default="auto", help="what completes the prompts")
    add_engine_options(parser)
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
    """All that can be checked first; then one search after another, on one engine, each with its file."""
    task.check_prompts()
    check_engine_dtype(options)
    check_engine(options)
    folder = find_model_folder(str(options.model_path))
    source = model_source(options, folder)
    places = output_places(folder, options.output_dir)
    samples = chosen_samples(task, options)
    opened, missing = open_attacks(task, options)
    sampling = SAMPLING.capped(options.max_tokens)
    identity = asked_identity(source, sampling, samples)
    paths, settings = {}, {}
    for name in opened:
        paths[name] = places.adversarial_result(task.name, name)
        settings[name] = {
            **identity,
            "prompt": task.prompt,
            "number_of_samples": len(samples),
            "seed": options.seed,
            "query_budget": options.query_budget,
            **settings_of_parts(options, parts_of_attack(name)),
        }

    reports = []
    asked = places.adversarial_completions(task.name, digest(identity))
    with ExitStack() as held:
        for name, path in paths.items():
            held.enter_context(locked(path))
            check_same_settings(path, settings[name])
        accuracy = held.enter_context(
            closing(PromptAccuracy(task, samples, asked, identity, source.open_engine, sampling))
        )
        check_clean_prompt(task, source.model, accuracy)
        for name, attack in opened.items():
            result = search(attack, task.prompt, task.protected_words, accuracy, options.query_budget)
            reports.append(attack_report(name, result, accuracy))
            packages = package_versions((*PACKAGES, *PACKAGES_OF_ATTACKS))
            about = {"task": task.name, "model": source.model, "command": command, "packages": packages}
            write_json(paths[name], {**about, "settings": settings[name], **reports[-1]})
            for line in prompt_lines(reports[-1]):
                log.info(line)
    for line in [*table(reports), *health_lines(reports)]:
        log.info(line)
    for name, why in missing.items():
        log.info("not run: %s: %s", name, why)
    log.info("results: %s", places.adversarial_result(task.name, "*").parent)


def chosen_samples(task: PromptTask, options: argparse.Namespace) -> Sequence[Sample]:
    """The whole set, or `--num_samples` of it in its order."""
    samples = task.load_samples(options.data_dir)
    if options.num_samples is None:
        return samples
    if options.num_samples > len(samples):
        raise UserError(f"--num_samples {options.num_samples}: {task.name} has {len(samples)} samples; give fewer")
    return [samples[i] for i in sorted(random.Random(options.seed).sample(range(len(samples)), options.num_samples))]


def open_attacks(task: PromptTask, options: argparse.Namespace) -> tuple[dict[str, Attack], dict[str, str]]:
    """The attacks asked for, by name, and why others of `all` cannot run.

    Raises UserError where a part of an attack that was named itself is missing."""
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
    """The options of `AttackParts` that an attack depends on, beside task and seed."""
    return getattr(_module(name), "PARTS", ())


def settings_of_parts(options: argparse.Namespace, parts: Sequence[str]) -> dict[str, str]:
    """The models and files that an attack works with, with the hashes of those that are on this machine."""
    settings = {}
    for part in parts:
        settings[part] = str(getattr(options, part))
        path = Path(settings[part])
        if path.exists():
            settings[f"{part}_hash"] = folder_hash(path) if path.is_dir() else content_hash(path)
    return settings


def _module(name: str):
    return importlib.import_module(f"{attacks.__name__}.{name}")


def asked_identity(source: ModelSource, sampling: Sampling, samples: Sequence[Sample]) -> dict[str, Any]:
    """What must agree for completions to be of use to another call."""
    return {
        "backend": source.backend,
        "model_fingerprint": source.model_fingerprint,
        "weights_fingerprint": source.weights_fingerprint,
        "sampling": {"max_tokens": sampling.max_tokens, "stop": list(sampling.stop), "temperature": 0.0},
        **({} if source.unusual_dtype is None else {"engine_dtype": source.unusual_dtype}),
        "samples": digest([[sample.text, sample.label] for sample in samples]),
    }


def digest(value: Any) -> str:
    """Of a JSON value, enough to tell it from others."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def check_same_settings(path: Path, settings: Mapping[str, Any]) -> None:
    """Raise UserError where a result that is there already was found in another way."""
    if not path.is_file():
        return
    found = read_json_object(path, "remove it").get("settings")
    if found != settings:
        known = found if isinstance(found, dict) else {}
        different = [key.replace("_", " ") for key in settings if known.get(key) != settings[key]]
        raise UserError(
            f"{path} holds the result of another run (another {' and '.join(different)}); choose another --output_dir, "
            "or remove it"
        )
