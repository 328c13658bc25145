"""AlpacaEval: a judge's win rates; of the tiny models, for which there is none, agreement with the reference."""

import json
import shlex
from collections.abc import Sequence

from inference_llms import alpaca_eval
from scripts.paper_tables.commands import Setting
from scripts.paper_tables.evaluator_results import agreement_file, alpaca_eval_folder, command_file, command_to_type
from scripts.paper_tables.to_judge import ToJudge, each, installed, run_evaluator
from utils.errors import UserError
from utils.whole_files import write_json, write_whole


def judge_answers(items: Sequence[ToJudge], setting: Setting) -> dict[str, str]:
    """Judge each file; returns why some were not, by key."""
    if setting.is_tiny:
        return each(items, _count_agreement)
    judge = installed("alpaca_eval")
    if judge is None:
        return {item.key: "alpaca_eval is not installed" for item in items}

    def call(item: ToJudge) -> None:
        command = command_to_type(item.task, item.files, item.command)
        run_evaluator([judge, *shlex.split(command)[1:]])
        write_whole(command_file(alpaca_eval_folder(item.files[0])), f"{command}\n")

    return each(items, call)


def _count_agreement(item: ToJudge) -> None:
    rows = [example.row for example in alpaca_eval.load_examples(item.data_dir)]
    if not all(isinstance(row.get("output"), str) for row in rows):
        raise UserError(f"the alpaca_eval set in {item.data_dir} has no reference answers (field 'output') to go by")
    references = {row["instruction"]: row["output"] for row in rows}
    answers = json.loads(item.files[0].read_text(encoding="utf-8"))
    unknown = [row["instruction"] for row in answers if row["instruction"] not in references]
    if unknown:
        raise UserError(f"the alpaca_eval set in {item.data_dir} lacks {len(unknown)} of the instructions answered")
    agrees = [row["output"].strip() == references[row["instruction"]] for row in answers]
    write_json(agreement_file(item.files[0]), {"agrees": agrees, "outputs": [row["output"] for row in answers]})
