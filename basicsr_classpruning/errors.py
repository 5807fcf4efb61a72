"""Errors that are shown to the user as one line, without a traceback."""

from __future__ import annotations


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
    """A wrong call: an option, key or value that is not allowed. Exit status 2.

    Args:
        message: what is wrong with the key's value, and what is allowed; without a key the whole message.
        key: name of the argument or option that is wrong, as Python or an options file calls it: ``output``,
            ``network_g.candidates``. The command line shows its own name for it.
    """

    status = 2

    def __init__(self, message: str, key: str | None = None) -> None:
        super().__init__(message if key is None else f'{key} {message}')
        self.key, self.text = key, message
