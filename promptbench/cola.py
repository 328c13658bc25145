"""Attack the prompt of CoLA: is an English sentence grammatical?"""

import sys

if __name__ in ("__main__", "__mp_main__"):  # before the imports, which take a while
    from utils.interrupts import prepare_process

    prepare_process(__name__)

import functools

from promptbench.prompt_task import PromptTask, load_validation_set

TASK = PromptTask(
    name="cola",
    prompt=(
        "As a grammar identification system, examine the provided sentence and respond with 'acceptable' for "
        "grammatically correct sentences or 'unacceptable' for incorrect ones."
        "\nSentence:{content}\nPlease respond with 'acceptable' or 'unacceptable'."
    ),
    labels={"acceptable": 1, "unacceptable": 0},
    paraphrases=(
        "Is the grammar of this sentence 'acceptable' or 'unacceptable'?\nSentence:{content}\nAnswer:",
        "Read this. If it is good English reply 'acceptable', if not 'unacceptable'.\nSentence:{content}\nReply:",
        "You correct homework. Mark this sentence 'acceptable' or 'unacceptable'.\nSentence:{content}\nMark:",
        "Would a native speaker find the sentence 'acceptable' or 'unacceptable'?\nSentence:{content}\nThey find it",
        "Look for mistakes: say 'acceptable' without any, 'unacceptable' with one.\nSentence:{content}\nI say",
        "Judge how this sentence is built, as 'acceptable' or 'unacceptable'.\nSentence:{content}\nJudgement:",
        "Could this stand in a book? Write 'acceptable' if so, else 'unacceptable'.\nSentence:{content}\nYou write:",
        "Label the sentence by its grammar alone: 'acceptable' or 'unacceptable'.\nSentence:{content}\nLabel:",
        "Given a sentence, output only 'acceptable' or 'unacceptable' for its grammar.\nSentence:{content}\nOutput:",
        "Here is a sentence from a learner. Is it 'acceptable' or 'unacceptable' English?\nSentence:{content}\nIt is",
    ),
    load_samples=functools.partial(load_validation_set, "cola"),
)

if __name__ == "__main__":
    from promptbench.run_attacks import main
    from utils.errors import run_command_line

    sys.exit(run_command_line(functools.partial(main, TASK)))
