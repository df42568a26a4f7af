"""The errors that a caller can act on; everything else is a bug and keeps its traceback."""


class JobError(Exception):
    """An error whose message is all that people need; they are shown no traceback."""


class InputError(JobError, ValueError):
    """Something that the user gave cannot be used: the message says name, value, rule and remedy."""


class CheckpointMismatch(InputError):
    """A checkpoint or a commit log was made from something else than what is asked for now."""


class StorageFailure(JobError):
    """A place could not be read or written, though nothing is known against what lies there.

    It is neither an OSError nor an InputError, so that nobody who takes those for damage takes this for it.
    """


class TooManyErrors(Exception):
    """A job did its work and lost more rows by errors than it may: the message says how many, and why."""


class Terminated(KeyboardInterrupt):
    """The process was asked to end by SIGTERM; what is committed stays, and the same command goes on."""
