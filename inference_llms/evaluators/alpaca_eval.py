"""AlpacaEval: a judge's win rate against reference outputs; for the tiny models, agreement with the references."""

import csv
import os
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from inference_llms.evaluators.results import (
    Verdicts,
    check_hashes,
    check_versions,
    evaluator_program,
    installed_program,
    read_command,
    read_json,
    run_evaluator,
    verdicts_of,
)
from inference_llms.task import AnswerFiles, Answers, Evaluator
from utils.content_hashes import json_hash
from utils.errors import UserError
from utils.output_places import OutputPlaces
from utils.whole_files import write_json, write_whole

KEY_OR_NONE = 'OPENAI_API_KEY="${OPENAI_API_KEY:-none}"'

# The paper uses chatgpt_fn, whose model gpt-3.5-turbo-16k-0613 is no longer served.
PAPER_ANNOTATOR = "chatgpt_fn"
ANNOTATOR = "weighted_alpaca_eval_gpt-4o-mini-2024-07-18"
ANNOTATOR_MODEL = "gpt-4o-mini-2024-07-18"
# Their verdicts are log-probabilities, for which the evaluator can correct the length of answers. The correction was
# fitted on the whole published set.
WEIGHTED, WHOLE_SET = "weighted_", 805
JUDGE_PROMPT = """\
<|im_start|>system
You compare two answers to the same request. Judge as a careful reader would: which one does what was asked, correctly,
completely and clearly? Ignore their order and their length as such.
<|im_end|>
<|im_start|>user
Request:
\"\"\"{instruction}\"\"\"

Answer m:
\"\"\"{output_1}\"\"\"

Answer M:
\"\"\"{output_2}\"\"\"

Which answer is better? Reply with its name alone, m or M.
<|im_end|>
"""
NEEDED = {"alpaca_eval": ">=0.6.6,<0.7", "pandas": "<3"}
SECONDS_TO_ANSWER = 10.0


@dataclass(frozen=True)
class Judge:
    """The judge: one of AlpacaEval's annotators (a name or a folder), or any model, on any server with OpenAI's
    interface, with `JUDGE_PROMPT`. Like the default annotator, such a judge weighs the log-probabilities of two names.
    """

    annotators_config: str = ANNOTATOR
    model: str | None = None
    base_url: str | None = None

    @property
    def is_own(self) -> bool:
        return self.model is not None or self.base_url is not None

    @property
    def mark(self) -> str:
        """A mark for files of this judge's answers; none for the default judge."""
        return "" if self == Judge() else f"_{json_hash(asdict(self))[:8]}"

    def check_annotator(self) -> None:
        """Raise UserError if the installed AlpacaEval has no such annotator."""
        name, folder = self.annotators_config, annotators_folder()
        if folder is None or (folder / name).exists() or Path(name).exists():
            return
        near = get_close_matches(name, [path.parent.name for path in folder.glob("*/configs.yaml")])
        remedy = f"near: {', '.join(near)}" if near else f"choose one of the folders in {folder}"
        raise UserError(f"--annotators_config {name}: AlpacaEval has no such annotator; {remedy}")

    def check_server(self) -> None:
        """Raise UserError unless the server answers."""
        if self.base_url is None:
            return
        if "://" not in self.base_url:
            raise UserError(f"--judge_base_url {self.base_url}: is not a URL; give it with http:// or https://")
        import urllib.error  # slow to import, as yaml is, and needed only with a judge
        import urllib.parse
        import urllib.request

        try:
            with urllib.request.urlopen(f"{self.base_url.rstrip('/')}/models", timeout=SECONDS_TO_ANSWER):
                pass
        except urllib.error.HTTPError as error:
            # Some servers ask for a key, or do not list models.
            if error.code == 404 and not urllib.parse.urlsplit(self.base_url).path.strip("/"):
                raise UserError(
                    f"--judge_base_url {self.base_url}: a server answers, but not at this path; give the whole URL, "
                    f"such as {self.base_url.rstrip('/')}/v1"
                ) from error
        except (OSError, ValueError) as error:
            raise UserError(
                f"--judge_base_url {self.base_url}: no server answers ({getattr(error, 'reason', error)}); start it, "
                "or leave the option out and judge later"
            ) from error


PUBLISHED_JUDGE = Judge()


def annotators_folder() -> Path | None:
    """The folder of the installed AlpacaEval with a folder for each annotator; None if it is not installed."""
    try:
        environment = Path(installed_program("alpaca_eval")).parents[1]
    except UserError:
        return None
    return next(environment.glob("lib/python*/site-packages/alpaca_eval/evaluators_configs"), None)


def judge_folder(outputs: Path) -> Path:
    """The folder with the config of a custom judge, beside the file of outputs."""
    return outputs.with_name(f"{outputs.name}_judge")


def write_judge(outputs: Path, judge: Judge) -> None:
    """Write the config of a custom judge: like the default annotator's, with its model, server and prompt."""
    import yaml

    clients, prompt = (judge_folder(outputs) / name for name in ("clients.yaml", "prompt.txt"))
    call = {"model_name": judge.model or ANNOTATOR_MODEL, "max_tokens": 1, "temperature": 1, "logprobs": True}
    call |= {"top_logprobs": 5, "client_config_path": str(clients.absolute())}
    config = {
        "prompt_template": str(prompt.absolute()),
        "fn_completions": "openai_completions",
        "completions_kwargs": call,
        "fn_completion_parser": "logprob_parser",
        "completion_parser_kwargs": {
            "numerator_token": "m",
            "denominator_tokens": ["m", "M"],
            "is_binarize": False,
        },
        "completion_key": "completions_all",
        "batch_size": 1,
    }
    client = {} if judge.base_url is None else {"base_url": judge.base_url}
    write_whole(prompt, JUDGE_PROMPT)
    write_whole(clients, yaml.safe_dump({"default": [client]}))
    write_whole(judge_folder(outputs) / "configs.yaml", yaml.safe_dump({"judge": config}, sort_keys=False))


def make_command(answers: Answers, files: Sequence[Path], places: OutputPlaces, judge: Judge = PUBLISHED_JUDGE) -> str:
    return command_for(files, len(answers.examples), places, judge)


def command_for(files: Sequence[Path], number: int, places: OutputPlaces, judge: Judge) -> str:
    """The command for a file with this `number` of outputs and one of references: the win rate, corrected for the
    length of answers where the annotator and the set allow it, else plain, as in the paper."""
    outputs = files[0].absolute()
    words = [evaluator_program("alpaca_eval"), "--model_outputs", str(outputs)]
    # Without this, the evaluator loads the set by its loading script, which `datasets` refuses to run.
    words += [word for file in files[1:] for word in ("--reference_outputs", str(file.absolute()))]
    annotator = str(judge_folder(outputs)) if judge.is_own else judge.annotators_config
    words += ["--annotators_config", annotator]
    if judge.is_own or not annotator.startswith(WEIGHTED) or number != WHOLE_SET:
        # The evaluator's default would download a file for the correction.
        words += ["--fn_metric", "get_winrate", "--sort_by", "win_rate"]
    # The judge's answers, failed ones too. By default they are inside the evaluator's package.
    words += ["--caching_path", str(outputs.with_name(f"{outputs.name}_annotations_cache{judge.mark}.json"))]
    # The evaluator makes a folder of this name; the nested names of merges must not make several.
    command = shlex.join([*words, "--name", places.name.replace("/", "_")])
    # The client refuses to start without a key, which a local server does not look at.
    return command if judge.base_url is None else f"{KEY_OR_NONE} {command}"


def result_folder(files: Sequence[Path]) -> Path:
    return files[0].with_name(f"{files[0].name}_alpaca_eval")


def agreement_file(answers: Path) -> Path:
    return answers.with_name(f"{answers.name}_agreement.json")


def call(answers: AnswerFiles) -> tuple[Path, str]:
    """Have the judge compare the answers, which costs money."""
    import yaml

    folder = result_folder(answers.files)
    command = f"{answers.command} {EVALUATOR.result_option} {shlex.quote(str(folder))}"
    program = installed_program("alpaca_eval")
    check_versions(program, NEEDED, "alpaca_eval")
    words = shlex.split(command.removeprefix(KEY_OR_NONE))
    own_judge = judge_folder(answers.files[0].absolute())
    if str(own_judge) in words:
        clients = yaml.safe_load((own_judge / "clients.yaml").read_text(encoding="utf-8"))
        Judge(base_url=clients["default"][0].get("base_url")).check_server()
    run_evaluator([program, *words[1:]], variables={"OPENAI_API_KEY": os.environ.get("OPENAI_API_KEY") or "none"})
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
    corrected = length_controlled_rate(annotations.with_name("leaderboard.csv"))
    note = "" if corrected is None else f"length-controlled win rate {corrected:.1f}"
    return replace(verdicts_of("win_rate", ids, preferences, read_command(folder)), note=note)


def length_controlled_rate(leaderboard: Path) -> float | None:
    """The win rate in per cent, corrected for the length of answers; None if the evaluator did not compute it."""
    if not leaderboard.is_file():
        return None
    with open(leaderboard, encoding="utf-8", newline="") as file:
        rates = [row.get("length_controlled_winrate") for row in csv.DictReader(file)]
    return float(rates[-1]) if rates and rates[-1] else None


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
