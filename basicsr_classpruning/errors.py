"""Errors that are shown to the user as one line, without a traceback."""


class UserError(Exception):
    """Work that failed for a reason the user can act on (a file, a picture, a full disk): exit status 1.

    The message is one line that names what was wrong, where, and what is allowed.
    """

    status = 1


class UsageError(UserError):
    """A wrong call: an option, key or value that is not allowed. Exit status 2."""

    status = 2
