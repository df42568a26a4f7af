"""What stands behind an error of Ray's is found, however deep."""

from __future__ import annotations

import errno

import pytest
from ray.exceptions import RayTaskError, UserCodeException

from tfray.errors import InputError, JobError
from tfray.units.stream import StreamStage, find_raised


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


def refuse(*_: object) -> None:
    raise InputError("precision")


def test_what_a_stage_raises_while_it_is_made_is_raised_as_it_is_with_its_first_item() -> None:
    stage = StreamStage(refuse, (), None)
    with pytest.raises(InputError, match="precision"):
        stage({"item": b""})
