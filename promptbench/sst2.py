"""Attack the prompt of SST-2: is a sentence of a film review positive or negative?"""

import sys

if __name__ in ("__main__", "__mp_main__"):  # before the imports, which take a while
    from utils.interrupts import prepare_process

    prepare_process(__name__)

import functools

from promptbench.prompt_task import PromptTask, load_validation_set

TASK = PromptTask(
    name="sst2",
    prompt=(
        "As a sentiment classifier, determine whether the following text is 'positive' or 'negative'."
        "\nText:{content}\nPlease respond with 'positive' or 'negative'."
    ),
    labels={"positive": 1, "negative": 0},
    paraphrases=(
        "Tell me if this text sounds 'positive' or 'negative'.\nText:{content}\nAnswer with one of the two words.",
        "Read the text and name its mood as 'positive' or 'negative'.\nText:{content}\nYour answer:",
        "Does the writer like the film? Say 'positive' for yes and 'negative' for no.\nText:{content}\nAnswer:",
        "You judge opinions. For the opinion below, reply 'positive' or 'negative'.\nText:{content}\nReply:",
        "Below is a piece of a film review. Label it 'positive' or 'negative'.\nText:{content}\nLabel:",
        "What feeling does the text express, 'positive' or 'negative'?\nText:{content}\nFeeling:",
        "Sort this text: is it 'positive', or is it 'negative'?\nText:{content}\nIt is",
        "Decide about the tone of these words, choosing 'positive' or 'negative'.\nText:{content}\nTone:",
        "Given the text, output only 'positive' or 'negative' as its sentiment.\nText:{content}\nSentiment:",
        "Imagine a friend says this. Is your friend's view 'positive' or 'negative'?\nText:{content}\nThe view is",
    ),
    load_samples=functools.partial(load_validation_set, "sst2"),
)

if __name__ == "__main__":
    from promptbench.run_attacks import main
    from utils.errors import run_command_line

    sys.exit(run_command_line(functools.partial(main, TASK)))
