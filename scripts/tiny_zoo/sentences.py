"""Sentences for the tiny model that classifies: film reviews for sst2's prompt, grammar for cola's.

Made from templates written for this project, under its MIT licence, like all text of the tiny models.
"""

# Word lists read best as prose.
# ruff: noqa: SIM905

import random

from promptbench import cola, sst2
from promptbench.prompt_task import PLACEHOLDER, PromptTask, Sample

TASKS: dict[str, PromptTask] = {task.name: task for task in (sst2.TASK, cola.TASK)}

PRAISE = (
    "charming moving funny clever warm brilliant gripping fresh lovely touching sharp graceful honest tender bright"
).split()
BLAME = "dull tired clumsy empty boring slow awful flat messy weak silly lifeless stale noisy pointless".split()
FILM_PARTS = "film story plot cast script ending comedy drama music dialogue".split()
DEGREES = "truly rather often always very deeply mostly quite".split()
REVIEWS = (
    "the {part} is {degree} {word}",
    "a {degree} {word} {part}",
    "what a {word} {part}",
    "a {word} {part} and a {second} {other}",
    "the {part} is {word} and the {other} {second}",
    "{degree} {word} , with a {second} {part}",
)
PEOPLE = "child teacher farmer doctor singer painter driver baker student neighbour".split()
THINGS = "book house dog letter garden picture song boat bridge cake".split()
DEEDS = "see like want find paint draw need praise".split()


def sample_review(rng: random.Random) -> Sample:
    """A piece of a film review, all praise (1) or all blame (0)."""
    label = rng.randrange(2)
    word, second = rng.sample(PRAISE if label else BLAME, 2)
    part, other = rng.sample(FILM_PARTS, 2)
    text = rng.choice(REVIEWS).format(word=word, second=second, part=part, other=other, degree=rng.choice(DEGREES))
    return Sample(f"{text} . ", label)


def sample_sentence(rng: random.Random) -> Sample:
    """An English sentence (1), or one without a verb, or with the verb or the article at the end (0)."""
    label = rng.randrange(2)
    person, thing, deed = rng.choice(PEOPLE), rng.choice(THINGS), rng.choice(DEEDS)
    several = rng.random() < 0.5
    subject, verb = (f"the {person}s", deed) if several else (f"the {person}", f"{deed}s")
    article = rng.choice(("the", "this", "that"))
    if label:
        text = f"{subject} {verb} {article} {thing}"
    else:
        wrong = (f"{article} {thing}", f"{article} {thing} {verb}", f"{verb} {thing} {article}")
        text = f"{subject} {rng.choice(wrong)}"
    return Sample(f"{text} .", label)


SAMPLERS = {"sst2": sample_review, "cola": sample_sentence}


def held_out_samples(seed: int, size: int = 120) -> dict[str, list[Sample]]:
    """For each task, `size` distinct test samples."""
    samples = {}
    for task, draw in SAMPLERS.items():
        rng = random.Random(f"test {task} {seed}")
        by_text: dict[str, Sample] = {}
        while len(by_text) < size:
            sample = draw(rng)
            by_text.setdefault(sample.text, sample)
        samples[task] = list(by_text.values())
    return samples


def held_out_texts(samples: dict[str, list[Sample]]) -> frozenset[str]:
    """The sentences that no training text may contain."""
    return frozenset(sample.text for of_task in samples.values() for sample in of_task)


def classified_pair(rng: random.Random, task: str, held_out: frozenset[str]) -> tuple[str, str]:
    """A (prompt, completion) pair with the right label, for a sentence that is not held out."""
    while True:
        sample = SAMPLERS[task](rng)
        if sample.text not in held_out:
            break
    word = next(word for word, number in TASKS[task].labels.items() if number == sample.label)
    return TASKS[task].prompt.replace(PLACEHOLDER, sample.text), f" {word}"


def as_file(task: str, samples: list[Sample]) -> str:
    """Samples as the task's file in --data_dir."""
    header = "text\tlabel\n" if task == "sst2" else ""
    return header + "".join(f"{sample.text}\t{sample.label}\n" for sample in samples)
