"""Units through Ray Data: each goes to one of a pool of actors and comes back as a small record."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict

from tfray.cluster import cluster_total
from tfray.config import ClusterConfig
from tfray.errors import InputError
from tfray.units.plan import Unit


def stream_units(
    units: list[Unit],
    stage: type,
    arguments: tuple,
    cluster: ClusterConfig,
    *,
    actors: int | None = None,
    gpus: float = 0,
) -> Iterator[dict]:
    """Yield what `stage(*arguments)` returns for each unit, in the order in which they finish.

    A stage is a class whose `__init__` loads and whose `__call__` maps one unit to a dict of plain
    values. Default: one actor a CPU core; in a cluster that grows, as many as it comes to hold.
    """
    import ray.data
    from ray.data import ActorPoolStrategy

    if not units:
        return
    smallest = min(len(units), actors or max(1, int(cluster_total("CPU"))))
    largest = len(units) if cluster.autoscaling and actors is None else smallest
    items = [{"unit": json.dumps(asdict(unit))} for unit in units]
    dataset = ray.data.from_items(items, override_num_blocks=len(items)).map(
        UnitStage,  # type: ignore[arg-type]
        fn_constructor_args=(stage, arguments),
        compute=ActorPoolStrategy(min_size=smallest, max_size=max(smallest, largest)),
        num_cpus=1,
        num_gpus=gpus or None,
    )
    try:
        for row in dataset.iter_rows():
            yield json.loads(row["result"])
    except Exception as error:
        raise find_input_error(error) or error from None


class UnitStage:
    """Ray Data stage: builds the real stage once, and carries units and results as JSON text."""

    def __init__(self, stage: type, arguments: tuple) -> None:
        self.stage = stage(*arguments)

    def __call__(self, row: dict) -> dict:
        return {"result": json.dumps(self.stage(Unit(**json.loads(row["unit"]))))}


def find_input_error(error: BaseException | None) -> InputError | None:
    """Return the InputError that a worker raised, if that is what stands behind an error of Ray's."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, InputError):
            return InputError(str(getattr(error, "cause", None) or error))
        error = getattr(error, "cause", None) or error.__cause__
    return None
