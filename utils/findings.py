"""Findings of a check of the inputs, each in one line with a remedy."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from utils.errors import UserError


@dataclass(frozen=True)
class Finding:
    """One problem with the inputs. An error stops the work; a warning is shown and recorded.

    `text` is one line: it names the file, tensor or option, describes the problem, and ends with what to do.
    """

    is_error: bool
    text: str


@dataclass
class Findings:
    """The findings of one check, in order."""

    found: list[Finding] = field(default_factory=list)

    def warn(self, text: str) -> None:
        self._add(Finding(False, text))

    def error(self, text: str) -> None:
        self._add(Finding(True, text))

    @contextmanager
    def collect(self) -> Iterator[None]:
        """Add a UserError raised in the block to the findings, as an error."""
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
        """Raise UserError with the first error, if there are any, and the number of the others."""
        if self.errors:
            first, *others = self.errors
            number = "1 more error" if len(others) == 1 else f"{len(others)} more errors"
            more = f" ({number}; the main script's --check lists them)" if others else ""
            raise UserError(first.text + more)

    def _add(self, finding: Finding) -> None:
        if finding not in self.found:
            self.found.append(finding)
