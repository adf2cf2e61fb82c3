"""Errors that are meant for people: what was wrong, where, how many, what to do."""


class RefitError(Exception):
    """Something a person can mend; the message says how, and no traceback is shown."""


class PictureError(RefitError):
    """A picture that must not be used: the message names the cause, never the whole file."""
