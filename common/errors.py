"""The one exception that a user of idiolect is meant to see."""


class IdiolectError(Exception):
    """Something the user can put right: one clear sentence, and the next step.

    Commands print the sentence without a traceback and exit non-zero. Every other
    exception is a defect of idiolect and keeps its traceback.
    """
