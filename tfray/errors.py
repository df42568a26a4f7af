"""The errors that a caller can act on; everything else is a bug and keeps its traceback."""


class InputError(ValueError):
    """Something that the user gave cannot be used: the message says name, value, rule and remedy."""


class CheckpointMismatch(InputError):
    """A checkpoint or a commit log was made from something else than what is asked for now."""


class StorageFailure(InputError, OSError):
    """A place could not be read or written, though nothing is known against what lies there."""


class TooManyErrors(Exception):
    """A job did its work and lost more rows by errors than it may: the message says how many, and why."""


class Terminated(KeyboardInterrupt):
    """The process was asked to end by SIGTERM; what is committed stays, and the same command goes on."""
