"""Findings: what a check of the inputs shows, each in one line with a remedy."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from utils.errors import UserError


@dataclass(frozen=True)
class Finding:
    """One fault or oddity of the inputs. An error stops the work; a warning is shown and recorded.

    `text` is one line: it names the file, tensor or option, says what is the matter, and ends with what to do.
    """

    is_error: bool
    text: str


@dataclass
class Findings:
    """The findings of one check, in the order in which they were made."""

    found: list[Finding] = field(default_factory=list)

    def warn(self, text: str) -> None:
        self._add(Finding(False, text))

    def error(self, text: str) -> None:
        self._add(Finding(True, text))

    @contextmanager
    def collect(self) -> Iterator[None]:
        """Turn a UserError that the block raises into an error among the findings."""
        try:
            yield
        except UserError as error:
            self.error(str(error))

    @property
    def errors(self) -> list[Finding]:
        return [finding for finding in self.found if finding.is_error]

    @property
    def warnings(self) -> list[Finding]:
        return [finding for finding in self.found if not finding.is_error]

    def stop_at_errors(self) -> None:
        """Raise UserError with the first error, if there is one, and the number of the others."""
        if self.errors:
            first, *others = self.errors
            number = "1 more error" if len(others) == 1 else f"{len(others)} more errors"
            more = f" ({number}; the main script's --check lists them)" if others else ""
            raise UserError(first.text + more)

    def _add(self, finding: Finding) -> None:
        if finding not in self.found:
            self.found.append(finding)
