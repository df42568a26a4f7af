"""Work through Ray Data: each item goes to one of a pool of actors, and a small result comes back."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from typing import Any

from tfray.cluster import cluster_total
from tfray.config import ClusterConfig
from tfray.errors import InputError


def stream(
    items: Sequence[object],
    stage: type,
    arguments: tuple,
    cluster: ClusterConfig,
    *,
    shared: object = None,
    actors: int | None = None,
    gpus: float = 0,
) -> Iterator[Any]:
    """Yield what `stage(*arguments)` returns for each item, in the order in which they finish.

    A stage is a class whose `__init__` loads and whose `__call__` maps one item, most often a unit, to a
    small result. `shared` is put into the object store once and comes as the last argument where it is
    given. Default: one actor a CPU core; in a cluster that grows, as many as it comes to hold.
    """
    import ray
    import ray.data
    from ray.data import ActorPoolStrategy

    if not items:
        return
    smallest = min(len(items), actors or max(1, int(cluster_total("CPU"))))
    largest = len(items) if cluster.autoscaling and actors is None else smallest
    rows = [{"item": pickle.dumps(item)} for item in items]
    reference = None if shared is None else ray.put(shared)
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
        StreamStage,  # type: ignore[arg-type]
        fn_constructor_args=(stage, arguments, reference),
        compute=ActorPoolStrategy(min_size=smallest, max_size=max(smallest, largest)),
        num_cpus=1,
        num_gpus=gpus or None,
    )
    try:
        for row in dataset.iter_rows():
            yield pickle.loads(row["result"])
    except Exception as error:
        raise find_input_error(error) or error from None


class StreamStage:
    """Ray Data stage: builds the real stage once, and carries items and results as bytes."""

    def __init__(self, stage: type, arguments: tuple, reference: object) -> None:
        import pyarrow as pa
        import ray

        pa.set_cpu_count(1)  # an actor has one core; threads beyond it take turns with the other actors
        shared = () if reference is None else (ray.get(reference),)  # type: ignore[call-overload]
        self.stage = stage(*arguments, *shared)

    def __call__(self, row: dict) -> dict:
        return {"result": pickle.dumps(self.stage(pickle.loads(row["item"])))}


def find_input_error(error: BaseException | None) -> InputError | None:
    """Return the InputError that a worker raised, if that is what stands behind an error of Ray's."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, InputError):
            return InputError(str(getattr(error, "cause", None) or error))
        error = getattr(error, "cause", None) or error.__cause__
    return None
