"""The one exception that stands for something a user can put right."""


class CodaError(Exception):
    """A failed run whose message is one line: what was wrong, where, and what would be right."""
