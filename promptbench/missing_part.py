"""What an attack needs and the user's machine lacks."""

from utils.errors import UserError


class MissingPart(UserError):
    """A model or file that an attack needs is not there; the line names it, its option and where to get it."""
