"""The shapes of a task (examples in, scores and files out) and of the external evaluator that scores its files."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inference_llms.data_sets import DataSet
from inference_llms.engines.engine import Completion, Engine, Prompt, Sampling
from inference_llms.evaluators.programs import programs_pass
from inference_llms.evaluators.results import (
    Verdicts,
    command_file,
    errors_in_one_line,
    hash_lines,
    hashes_file,
    hashing_command,
)
from inference_llms.prompt_format import PAPER_PROMPTS, PromptFormat, complete
from utils.errors import UserError
from utils.output_places import OutputPlaces
from utils.whole_files import write_whole

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LENIENT = "lenient_accuracy"

# Whether a completion is right, readable, ..., given the example's row.
Rule = Callable[[str, Mapping[str, Any]], bool]


@dataclass(frozen=True)
class LenientReading:
    """A second, more generous rule for whether completions are right.

    `version`: changes with the rule; do not compare scores of different versions. `are_right(completions, rows)`:
    whether each completion is right, given its example's row.
    """

    version: int
    are_right: Callable[[Sequence[str], Sequence[Mapping[str, Any]]], list[bool]]


@dataclass(frozen=True)
class Example:
    """One example of a set: its id (its position in the set, or the set's own), data row, and prompt: the paper's, or
    the question."""

    id: int | str
    prompt: str
    row: dict[str, Any]


@dataclass(frozen=True)
class Answers:
    """The completions of a run for one task: one for each of `examples`, which are a slice of `whole_set`.

    `times`: when each was finished, in seconds since 1970. `model`: the path of the model. `data_dir` and `release`:
    the folder of the set's files, if given, and the release of the set.
    """

    examples: Sequence[Example]
    completions: Sequence[str]
    times: Sequence[float]
    whole_set: Sequence[Example]
    model: str
    data_dir: Path | None = None
    release: str | None = None


@dataclass(frozen=True)
class AnswerFiles:
    """The files that one run wrote for a task's evaluator, and the evaluator's command on record.

    `data_dir` and `release` as in `Answers`.
    """

    task: Task
    files: tuple[Path, ...]
    command: str
    data_dir: Path | None = None
    release: str | None = None


@dataclass(frozen=True)
class Evaluator:
    """A program that scores a task's files.

    `make_command(answers, files, places)`: its command, as recorded and printed. `result(files)`: the file or folder
    for its result, which the command's `result_option` names. `call(answer_files)`: run it; returns its result and the
    command that scored. `read_result(files)`: its verdicts; None if it has not scored these files; may raise any of
    `BROKEN` if they are damaged. `keeps_hashes`: whether the printed command must write hashes of the files, because
    the result does not show which answers it belongs to. `call_without_model`: scores the tiny models' answers, if
    `call` prompts another model.
    """

    name: str
    runs_programs: bool
    make_command: Callable[[Answers, tuple[Path, ...], OutputPlaces], str]
    result: Callable[[Sequence[Path]], Path]
    call: Callable[[AnswerFiles], tuple[Path, str]]
    read_result: Callable[[Sequence[Path]], Verdicts | None]
    result_option: str | None = None
    keeps_hashes: bool = True
    call_without_model: Callable[[AnswerFiles], tuple[Path, str]] | None = None

    def full_command(self, files: Sequence[Path], command: str) -> str:
        """The recorded `command`, extended to write the result where `read` looks for it, and hashes of the files."""
        if self.result_option is not None:
            command += f" {self.result_option} {shlex.quote(str(self.result(files)))}"
        return f"{command} && {hashing_command(self.result(files), files)}" if self.keeps_hashes else command

    def run(self, answers: AnswerFiles, without_model: bool = False) -> None:
        """Score the files of one run, and write hashes of everything that the result depends on beside it.

        Raises UserError if the files are damaged, or the evaluator fails or is not installed."""
        call = self.call_without_model if without_model and self.call_without_model else self.call
        with errors_in_one_line(answers.files[0]):
            hashes = hash_lines([*answers.files, *answers.task.data_set.files_in(answers.data_dir)])
            result, command = call(answers)
            if command:
                write_whole(command_file(result), f"{command}\n")
            write_whole(hashes_file(result), hashes)

    def read(self, files: Sequence[Path]) -> Verdicts | None:
        """The verdicts on a run's files; None if the evaluator has not scored them.

        Raises UserError if the result or the files are damaged or do not belong together."""
        if not files:
            raise UserError("the record names no file for its evaluator; rerun its command")
        with errors_in_one_line(files[0]):
            return self.read_result(files)

    def has_scored(self, files: Sequence[Path]) -> bool:
        """Whether there is a result for the current files."""
        with suppress(UserError):
            return self.read(files) is not None
        return False


@dataclass(frozen=True, kw_only=True)
class Task:
    """One benchmark.

    `title`, `set_size`, `column`: the data set's name and size in the paper, and its column in the paper's tables.
    `role`: the fine-tune that it tests (instruct, math or code), if any. `make_prompt(row)`: the paper's prompt of a
    row. `make_question(row)`: its question, for other formats of prompts. `prompt_format`: the format in use; all other
    fields get the answer in a completion, which in chats does not include the model's thinking. `about`: what else
    identifies the task's results.
    `metrics`: rules whose shares of right completions are the scores. `is_right`: the rule for one completion, if it
    is not the metric "accuracy"; searches use it. `lenient`: the rule of the score "lenient_accuracy", if any.
    `is_readable`: whether a completion holds the number, expression or program that the task looks for; None if the
    task takes any text. `program(completion)` and `problem(row)`: a completion's program and the problem that tests
    it, in HumanEval's form. `write_files(answers, places)` writes the
    files for `evaluator` and returns them. `evalplus(answers, places)`: the same for EvalPlus; returns its command, if
    it takes these answers. `check_files(times, places)`, called before anything is generated, raises
    UserError if `write_files` cannot write them, or would replace files of completions with other `times` (by id;
    None: files may be replaced).
    """

    name: str
    data_set: DataSet
    make_prompt: Callable[[Mapping[str, Any]], str]
    make_question: Callable[[Mapping[str, Any]], str]
    sampling: Sampling
    title: str = ""
    set_size: int = 0
    column: int = 100
    role: str | None = None
    metrics: Mapping[str, Rule] = field(default_factory=dict)
    is_right: Rule | None = None
    lenient: LenientReading | None = None
    is_readable: Rule | None = None
    program: Callable[[str], str] | None = None
    problem: Callable[[Mapping[str, Any]], dict[str, Any]] | None = None
    evaluator: Evaluator | None = None
    write_files: Callable[[Answers, OutputPlaces], tuple[Path, ...]] = lambda answers, places: ()
    check_files: Callable[[Mapping[int | str, float] | None, OutputPlaces], None] = lambda times, places: None
    evalplus: Callable[[Answers, OutputPlaces], str | None] = lambda answers, places: None
    prompt_format: PromptFormat = PAPER_PROMPTS
    about: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "title", self.title or self.name)
        object.__setattr__(self, "is_right", self.is_right or self.metrics.get("accuracy"))

    def load_examples(self, data_dir: Path | None, release: str | None = None) -> list[Example]:
        """The whole set in its order. Raises UserError for a faulty set."""
        id_field = self.data_set.id_field
        make_prompt = self.make_prompt if self.prompt_format.is_paper else self.make_question
        return [
            Example(position if id_field is None else row.fields[id_field], make_prompt(row.fields), row.fields)
            for position, row in enumerate(self.data_set.load_rows(data_dir, release))
        ]

    def in_format(self, prompt_format: PromptFormat) -> Task:
        """The same task with other prompts. Only the paper's need stops: elsewhere the model ends its answer."""
        stop = self.sampling.stop if prompt_format.is_paper else ()
        return replace(self, prompt_format=prompt_format, sampling=replace(self.sampling, stop=stop))

    def prompts(self, examples: Sequence[Example]) -> list[Prompt]:
        """What an engine gets for these examples."""
        return [self.prompt_format.prompt(example.prompt) for example in examples]

    def prompts_as_read(
        self, tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example]
    ) -> Iterator[tuple[str, int, str]]:
        """Yield for each example how it is answered, the number of the prompt's tokens, and the text of these tokens.
        Raises UserError for chats without a chat template."""
        from inference_llms.engines.model_loading import prompt_tokens  # imports transformers, which takes seconds

        for tokens in prompt_tokens(tokenizer, self.prompts(examples)):
            yield self.sampling.in_words(), len(tokens), tokenizer.decode(tokens)

    def complete(self, engine: Engine, examples: Sequence[Example]) -> Iterator[tuple[int, Completion]]:
        """Yield (position in `examples`, completion) as each ends, from one call of the engine."""
        return complete(engine, self.prompts(examples), self.sampling)

    def answer(self, completion: str) -> str:
        """The answer in a completion."""
        return self.prompt_format.answer(completion)

    def text(self, answer: str) -> str:
        """The text of an answer, for its health."""
        return answer

    def capped(self, max_tokens: int | None) -> Task:
        """The same task, with completions of at most `max_tokens` new tokens; None: unchanged."""
        return replace(self, sampling=self.sampling.capped(max_tokens))

    def scores(self, examples: Sequence[Example], answers: Sequence[str]) -> dict[str, float]:
        """The score of all answers by each metric."""
        pairs = [(answer, example.row) for answer, example in zip(answers, examples, strict=True)]
        scores = {name: sum(rule(*pair) for pair in pairs) / len(pairs) for name, rule in self.metrics.items()}
        if self.lenient is not None:
            scores[LENIENT] = sum(self.lenient_verdicts(examples, answers)) / len(pairs)
        return scores

    def check_verdicts(self, examples: Sequence[Example]) -> None:
        """Raise UserError unless single answers can be right or wrong, and the set says which are."""
        if self.program is None and self.is_right is None:
            raise UserError(f"--tasks {self.name}: its Task has no is_right, which a search needs; add one")
        if self.program is None:
            self.verdicts(examples, [""] * len(examples))

    def verdicts(self, examples: Sequence[Example], completions: Sequence[str]) -> list[bool]:
        """Whether each completion is right: by the rule for one, or by running its program on the example's tests."""
        pairs = list(zip(completions, examples, strict=True))
        if self.program is not None:
            return programs_pass([(self.problem(example.row), self.program(text)) for text, example in pairs])
        return [self.is_right(text, example.row) for text, example in pairs]

    def lenient_verdicts(self, examples: Sequence[Example], completions: Sequence[str]) -> list[bool]:
        """Whether each completion is right by the strict rule, or else by the lenient one, which reads no text after a
        stop."""
        pairs = list(zip(completions, examples, strict=True))
        verdicts = [self.is_right(text, example.row) for text, example in pairs]
        wrong = [position for position, is_right in enumerate(verdicts) if not is_right]
        texts = [before_stop(pairs[position][0], self.sampling.stop) for position in wrong]
        rows = [pairs[position][1].row for position in wrong]
        for position, is_right in zip(wrong, self.lenient.are_right(texts, rows), strict=True):
            verdicts[position] = is_right
        return verdicts


def before_stop(text: str, stops: Sequence[str]) -> str:
    """The text up to the first stop. Completions of other programs may go on after it."""
    return re.split("|".join(map(re.escape, stops)), text, maxsplit=1)[0] if stops else text
