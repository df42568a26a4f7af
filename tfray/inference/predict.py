"""The predict job: files -> units -> one Parquet file a unit, exactly once."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import asdict

from tfray import storage
from tfray.checkpoint.folder import ModelFolder, open_model_folder
from tfray.cluster import cluster_total, connected
from tfray.config import ClusterConfig, InferenceConfig, PredictJob, as_list
from tfray.corpus.columns import check_columns, choose_source
from tfray.corpus.read import declare_schema
from tfray.errors import InputError
from tfray.inference.columns import output_schema
from tfray.inference.stage import Assignment, PredictUnit
from tfray.report.progress import Progress
from tfray.units.ledger import Ledger, open_ledger, store_settings
from tfray.units.plan import InputFile, Unit, amount, find_files, plan_units
from tfray.units.stream import stream

logger = logging.getLogger(__name__)

UNIT_ROWS = (64, 4096)
BATCHING = {"batch_rows", "max_tokens", "memory_gb"}  # these do not change any result


def predict(job: PredictJob) -> str:
    """Return the folder of predictions, made now or before; a killed job goes on where it was."""
    folder = open_model_folder(job.model_folder)
    files = find_files(as_list(job.input))
    source = choose_source(files, job.source_column)
    for file in files:
        check_columns(file, {source}, {source})
    schema = declare_schema(files, {source})
    output_schema(schema)
    ledger = open_ledger(job.out, made_from(job, folder, files), job.overwrite)
    if ledger.is_finished:
        logger.info("predictions: %s is finished and unchanged", ledger.folder)
        return ledger.folder
    store_settings(ledger.folder, job)
    units = plan_units(files, *UNIT_ROWS)
    limit = job.inference.max_characters
    assignment = Assignment(folder.folder, ledger.folder, source, schema, job.generation, limit)
    with connected(job.cluster):
        run_units(job, ledger, units, assignment)
    finish(ledger, units, folder.task)
    return ledger.folder


def made_from(job: PredictJob, folder: ModelFolder, files: list[InputFile]) -> dict[str, object]:
    """Return everything that the predictions follow from."""
    generation = {name: value for name, value in asdict(job.generation).items() if name not in BATCHING}
    return {
        "model": folder.fingerprint,
        "generation": generation,
        "source_column": job.source_column,
        "max_characters": job.inference.max_characters,
        "inputs": [storage.file_identity(file.path) for file in files],
    }


def run_units(job: PredictJob, ledger: Ledger, units: list[Unit], assignment: Assignment) -> None:
    """Predict the units that are not done yet."""
    remaining = ledger.remaining(units)
    if len(remaining) < len(units):
        logger.info("predictions: %d of %d units were done before", len(units) - len(remaining), len(units))
    actors, gpus = place_actors(job.inference, job.cluster)
    errors = 0
    with Progress(*amount("predicting", remaining)) as progress:
        results = stream(remaining, PredictUnit, (assignment,), job.cluster, actors=actors, gpus=gpus)
        for result in results:
            errors += sum(result["errors"].values())
            progress.update(result["unit_rows"], errors=errors)


def place_actors(config: InferenceConfig, cluster: ClusterConfig) -> tuple[int, float]:
    """Return the number of actors and the GPUs of each; raises InputError where they find no room."""
    cpus, gpus = int(cluster_total("CPU")), int(cluster_total("GPU"))
    use_gpu = config.use_gpu == "yes" or (config.use_gpu == "auto" and gpus > 0)
    total, kind = (gpus, "GPU") if use_gpu else (cpus, "CPU")
    actors = config.actors or max(1, total)
    if actors > total and not cluster.autoscaling:
        raise InputError(
            f"inference.actors={actors} need a {kind} each, the cluster has {total}; use at most {total}, "
            "or say --cluster.autoscaling true if it grows on demand"
        )
    return actors, 1.0 if use_gpu else 0.0


def finish(ledger: Ledger, units: list[Unit], task: str) -> None:
    """Count what was written, say so, and declare the predictions whole."""
    errors: Counter[str] = Counter()
    rows = 0
    for summary in ledger.records(units):
        rows += summary["rows"]
        errors.update(summary["errors"])
    ledger.finish({"task": task, "rows": rows, "errors": dict(errors.most_common()), "units": len(units)})
    listed = ", ".join(f"{count} {kind}" for kind, count in errors.most_common())
    logger.info("predictions: %d rows, %s -> %s", rows, listed or "no errors", ledger.folder)
