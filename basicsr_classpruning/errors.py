"""Errors that are shown to the user as one line, without a traceback."""


class UserError(Exception):
    """Work that failed for a reason the user can act on (a file, a picture, a full disk): exit status 1.

    The message is one line that names what was wrong, where, and what is allowed.
    """

    status = 1

    def __init__(self, message: str) -> None:
        # A DataLoader repeats a worker's error with the worker's whole traceback as its message, whose last line is
        # the message given there.
        super().__init__(message.rstrip().rpartition(f'{type(self).__name__}: ')[2])


class UsageError(UserError):
    """A wrong call: an option, key or value that is not allowed. Exit status 2."""

    status = 2
