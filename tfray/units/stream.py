"""Work through Ray Data: each item goes through one or more steps of actors, and a small result comes back."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

from tfray.cluster import cluster_total
from tfray.config import ClusterConfig
from tfray.errors import JobError

Kind = TypeVar("Kind", bound=Exception)


class WorkLost(Exception):
    """Ray has lost nodes or objects and could not make up for them; what is committed is there all the same."""


class Step(NamedTuple):
    """A pool of actors that do one thing with an item.

    A stage is a class whose `__init__` loads and whose `__call__` maps one item, most often a unit, to
    what the next step takes, or to a small result; or a function that returns such an object.
    """

    stage: Callable[..., Callable[[Any], Any]]
    arguments: tuple
    actors: tuple[int, int]
    """The fewest and the most."""
    cpus: float = 1.0
    gpus: float = 0.0
    shared: object = None
    """Put into the object store once; comes as the last argument where it is given."""


def stream(
    items: Sequence[object], stage: type, arguments: tuple, cluster: ClusterConfig, *, shared: object = None
) -> Iterator[Any]:
    """Yield what one step makes of each item, in the order in which they finish.

    One actor a CPU core; in a cluster that grows, as many as it comes to hold.
    """
    smallest = max(1, min(len(items), int(cluster_total("CPU")))) if items else 1
    largest = max(smallest, len(items) if cluster.autoscaling else 0)
    yield from flow(items, [Step(stage, arguments, (smallest, largest), shared=shared)])


def flow(items: Sequence[object], steps: list[Step], waiting_bytes: int | None = None) -> Iterator[Any]:
    """Yield what the steps, one after the other and all at the same time, make of each item, as they finish.

    Steps that are ahead of the next one pause when about waiting_bytes wait for it.
    """
    import ray
    import ray.data
    from ray.data import ActorPoolStrategy, DataContext, ExecutionResources

    if not items:
        return
    poll_less()
    context = DataContext.get_current().copy()
    if waiting_bytes:
        context.execution_options.resource_limits = ExecutionResources(object_store_memory=waiting_bytes)
    rows = [{"item": pickle.dumps(item)} for item in items]
    with DataContext.current(context):
        dataset = ray.data.from_items(rows, override_num_blocks=len(rows))
        for step in steps:
            smallest, largest = (max(1, min(count, len(items))) for count in step.actors)
            dataset = dataset.map(
                StreamStage,  # type: ignore[arg-type]
                fn_constructor_args=(step.stage, step.arguments, None if step.shared is None else ray.put(step.shared)),
                compute=ActorPoolStrategy(min_size=smallest, max_size=largest, max_tasks_in_flight_per_actor=2),
                num_cpus=step.cpus,
                num_gpus=step.gpus or None,
            )
    try:
        for row in dataset.iter_rows():
            yield pickle.loads(row["item"])
    except Exception as error:
        if (raised := find_raised(error, (JobError, OSError))) is not None:
            raise raised from None
        if (lost := find(error, losses())) is not None:
            raise WorkLost(f"{type(lost).__name__}: {' '.join(str(lost).split())[-300:]}") from error
        raise error from None


def poll_less() -> None:
    """Let Ray Data's executor wake up for what is finished, and else once a second.

    It looks around ten times a second, and has a thread that fetches what it is told of each block: together 2% of a
    core, of two that have better things to do. It has an option for neither once it is imported.
    """
    from ray.data._internal.execution import metadata_fetcher, streaming_executor_state

    metadata_fetcher._PREFETCH_ON_THREAD = False  # its news wait for the next look, which would now be late
    streaming_executor_state.WAIT_FOR_TASK_COMPLETION_TIMEOUT_S = 1.0


class StreamStage:
    """Ray Data stage: builds the real stage once, and carries items and results as bytes."""

    def __init__(self, stage: Callable[..., Callable[[Any], Any]], arguments: tuple, reference: object) -> None:
        import pyarrow as pa
        import ray

        pa.set_cpu_count(1)  # an actor has one core; threads beyond it take turns with the other actors
        shared = () if reference is None else (ray.get(reference),)  # type: ignore[call-overload]
        self.failure: Exception | None = None
        try:
            self.stage = stage(*arguments, *shared)
        except Exception as error:  # raised with the first item: of a constructor's error Ray keeps the text alone
            self.failure = error

    def __call__(self, row: dict) -> dict:
        if self.failure is not None:
            raise self.failure
        return {"item": pickle.dumps(self.stage(pickle.loads(row["item"])))}


def find_raised(error: BaseException, kinds: type[Kind] | tuple[type[Kind], ...]) -> Kind | None:
    """Return the error of some kinds that a worker raised, if that is what stands behind an error of Ray's.

    Ray's own has both kinds, and the trace for its message.
    """
    found = find(error, kinds)
    cause = getattr(found, "cause", None) or found
    return cause if isinstance(cause, kinds) else None


def losses() -> tuple[type[Exception], ...]:
    """Return the errors by which Ray says that something has died."""
    from ray import exceptions

    return (
        exceptions.ActorDiedError,
        exceptions.ActorUnavailableError,
        exceptions.NodeDiedError,
        exceptions.ObjectLostError,
        exceptions.OutOfMemoryError,
        exceptions.WorkerCrashedError,
    )


def find(error: BaseException | None, kinds: type | tuple[type, ...]) -> BaseException | None:
    """Return the error of some kinds that stands behind an error of Ray's, if there is one."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, kinds):
            return error
        error = getattr(error, "cause", None) or error.__cause__
    return None
