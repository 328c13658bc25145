"""Reading a label out of a completion."""

from collections.abc import Mapping

_AROUND = ",._\"'-+=!?()&^%$#@:\\|{}[]<>/`\n\t\r\v\f "


def read_label(completion: str, labels: Mapping[str, int]) -> int | None:
    """The number of the label that a completion ends in, by PromptBench's reading; None for any other last word.

    Padding and end marks go, then white space and punctuation around the whole; what follows the last space is the
    word, in lower case and without apostrophes.
    """
    text = completion.lower().replace("<pad>", "").replace("</s>", "").strip(_AROUND)
    return labels.get(text.split(" ")[-1].replace("'", ""))
