"""AlpacaEval: a judge's win rate against reference outputs; for the tiny models, agreement with the references."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from inference_llms.evaluators.results import (
    Verdicts,
    check_hashes,
    installed_program,
    read_command,
    read_json,
    run_evaluator,
    verdicts_of,
)
from inference_llms.task import AnswerFiles, Answers, Evaluator
from utils.errors import UserError
from utils.output_places import OutputPlaces
from utils.whole_files import write_json

# The paper uses chatgpt_fn, whose model gpt-3.5-turbo-16k-0613 is no longer served.
ANNOTATOR = "weighted_alpaca_eval_gpt-4o-mini-2024-07-18"


def make_command(answers: Answers, files: Sequence[Path], places: OutputPlaces) -> str:
    """The command for a file of outputs and one of references: the plain win rate, as in the paper."""
    outputs = files[0].absolute()
    words = ["alpaca_eval", "--model_outputs", str(outputs)]
    # Without this, the evaluator loads the set by its loading script, which `datasets` refuses to run.
    words += [word for file in files[1:] for word in ("--reference_outputs", str(file.absolute()))]
    words += ["--annotators_config", ANNOTATOR, "--fn_metric", "get_winrate", "--sort_by", "win_rate"]
    # The judge's answers, failed ones too. By default they are inside the evaluator's package.
    words += ["--caching_path", str(outputs.with_name(f"{outputs.name}_annotations_cache.json"))]
    # The evaluator makes a folder of this name; the nested names of merges must not make several.
    return shlex.join([*words, "--name", places.name.replace("/", "_")])


def result_folder(files: Sequence[Path]) -> Path:
    return files[0].with_name(f"{files[0].name}_alpaca_eval")


def agreement_file(answers: Path) -> Path:
    return answers.with_name(f"{answers.name}_agreement.json")


def call(answers: AnswerFiles) -> tuple[Path, str]:
    """Have the judge compare the answers, which costs money."""
    folder = result_folder(answers.files)
    command = f"{answers.command} {EVALUATOR.result_option} {shlex.quote(str(folder))}"
    run_evaluator([installed_program("alpaca_eval"), *shlex.split(command)[1:]])
    return folder, command


def count_agreement(answers: AnswerFiles) -> tuple[Path, str]:
    """Compare the answers with the set's reference outputs."""
    task, (file, *_) = answers.task, answers.files
    rows = {example.row["instruction"]: example.row for example in task.load_examples(answers.data_dir)}
    outputs = read_json(file)
    unknown = [row["instruction"] for row in outputs if row["instruction"] not in rows]
    if unknown:
        raise UserError(f"the {task.name} set in {answers.data_dir} lacks {len(unknown)} of the instructions answered")
    agrees = [task.is_right(row["output"], rows[row["instruction"]]) for row in outputs]
    write_json(agreement_file(file), {"agrees": agrees, "outputs": [row["output"] for row in outputs]})
    return agreement_file(file), ""


def read_result(files: Sequence[Path]) -> Verdicts | None:
    """The agreement with the references if it was counted, else the judge's win rate."""
    answers = files[0]
    rows = read_json(answers)
    ids = [row["instruction"] for row in rows]
    agreement = agreement_file(answers)
    if agreement.is_file():
        stored = read_json(agreement)
        if stored["outputs"] != [row["output"] for row in rows]:
            raise UserError(f"{agreement} belongs to other answers than {answers.name} now holds")
        check_hashes(agreement, [answers])
        if not all(isinstance(agrees, bool) for agrees in stored["agrees"]):
            raise UserError(f"{agreement} holds other values than true and false; remove it")
        return verdicts_of("agreement", ids, stored["agrees"], command="")
    folder = result_folder(files)
    annotations = max(folder.rglob("annotations.json"), key=lambda path: path.stat().st_mtime, default=None)
    if annotations is None:
        return None
    verdicts = {row["instruction"]: row for row in read_json(annotations)}
    check_hashes(folder, [answers])
    preferences = []
    for row in rows:
        verdict = verdicts.get(row["instruction"])
        if verdict is None or verdict.get("output_2") != row["output"]:
            raise UserError(f"{annotations} lacks an answer's verdict, or belongs to other answers than {answers.name}")
        preferences.append(share_of_preference(verdict["preference"], annotations))
    return verdicts_of("win_rate", ids, preferences, read_command(folder))


def share_of_preference(preference: Any, path: Path) -> float:
    """1 for a win of our answer, 0 for a loss, between them for a weighted preference or a draw."""
    if preference == 0:  # a draw, as older versions write it
        return 0.5
    if type(preference) not in (int, float) or not 1 <= preference <= 2:
        raise UserError(f"{path}: a preference is {preference!r}, so the judge gave no answer; run it again")
    return preference - 1


EVALUATOR = Evaluator(
    name="alpaca_eval",
    runs_programs=False,
    make_command=make_command,
    result=result_folder,
    call=call,
    read_result=read_result,
    result_option="--output_path",
    keeps_hashes=False,
    call_without_model=count_agreement,
)
