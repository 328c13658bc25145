"""AlpacaEval: a judge's win rates; of the tiny models, for which there is none, agreement with the reference."""

import json
import shlex
from collections.abc import Sequence

from inference_llms.tasks import alpaca_eval
from scripts.paper_tables.commands import Setting
from scripts.paper_tables.evaluator_results import agreement_file, alpaca_eval_folder, command_file, command_with_output
from scripts.paper_tables.judged_files import keep_hash_lines
from scripts.paper_tables.to_judge import ToJudge, each, hashes_to_judge, installed, run_evaluator
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
        command, hashes = command_with_output(item.task, item.files, item.command), hashes_to_judge(item)
        run_evaluator([judge, *shlex.split(command)[1:]])
        write_whole(command_file(alpaca_eval_folder(item.files[0])), f"{command}\n")
        keep_hash_lines(alpaca_eval_folder(item.files[0]), hashes)

    return each(items, call)


def _count_agreement(item: ToJudge) -> None:
    hashes = hashes_to_judge(item)
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
    keep_hash_lines(agreement_file(item.files[0]), hashes)
