"""What an attack needs and is not there."""

from utils.errors import UserError


class MissingPart(UserError):
    """A model, a file or a task's paraphrases that an attack needs are not there; the line names them, the option if
    there is one, and where to get them."""
