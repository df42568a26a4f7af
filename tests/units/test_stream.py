"""What stands behind an error of Ray's is found, however deep."""

from __future__ import annotations

import errno

from ray.exceptions import RayTaskError, UserCodeException

from tfray.errors import InputError, JobError
from tfray.units.stream import find_raised


def as_ray_raises(error: Exception) -> BaseException:
    """Return an error of a function on a worker as its driver gets it from Ray Data."""
    wrapped = UserCodeException("the function failed")
    wrapped.__cause__ = error
    return RayTaskError("map", "a long trace", wrapped).as_instanceof_cause()


def test_a_workers_own_errors_are_found() -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    for error in (as_ray_raises(full), RayTaskError("map", "a long trace", full).as_instanceof_cause()):
        found = find_raised(error, (JobError, OSError))
        assert isinstance(found, OSError) and found.errno == errno.ENOSPC and "trace" not in str(found)
        assert find_raised(error, JobError) is None
    refused = find_raised(as_ray_raises(InputError("no such column")), JobError)
    assert str(refused) == "no such column"
