"""The one exception a user is meant to read."""


class MoonflowError(Exception):
    """Bad input or a missing service, told in one line: what is wrong, where, and what to do.

    Entry points print the message without a traceback and exit with a non-zero status; anything else that
    escapes is a bug and keeps its traceback.
    """


class Unavailable(MoonflowError):
    """A service that all of a step's work needs is not there: to pass over one sample or episode would not help."""
