"""What training says: one JSON line an event in `log.jsonl`, and the same as lines for people.

JSON has no number that is not finite: such a value is null in the log, and not a number when it comes back.
"""

from __future__ import annotations

import json
import logging
import math

from tfray import storage

LOG = "log.jsonl"
SHOWN_WAIT = 0.01


def write_event(out: str, event: dict) -> None:
    """Append one event to a run's log."""
    known = {name: None if is_infinite(value) else value for name, value in event.items()}
    storage.append_line(storage.join(out, LOG), json.dumps(known, allow_nan=False))


def is_infinite(value: object) -> bool:
    """Say whether a value is a number that is infinite or not a number."""
    return isinstance(value, float) and not math.isfinite(value)


class WarningEvents(logging.Handler):
    """Puts a worker's warnings into a run's log, which people see where the worker's own output is hidden."""

    def __init__(self, out: str) -> None:
        super().__init__(logging.WARNING)
        self.out = out

    def emit(self, record: logging.LogRecord) -> None:
        """Write a warning's text; a log that cannot be written ends nothing here."""
        try:
            write_event(self.out, {"event": "warning", "message": record.getMessage()})
        except storage.WRITE_ERRORS:
            self.handleError(record)


class LogReader:
    """Reads a run's events as they are written, each once."""

    def __init__(self, out: str) -> None:
        self.path, self.position = storage.join(out, LOG), 0

    def new_events(self) -> list[dict]:
        """Return the events since the last call; a line that is being written, or that a kill has cut, is left out."""
        if not storage.exists(self.path) or storage.file_size(self.path) <= self.position:
            return []
        data = b"".join(storage.read_chunks(self.path, start=self.position))
        whole = data[: data.rfind(b"\n") + 1]
        self.position += len(whole)
        return [event for event in map(parse, whole.decode("utf-8", "replace").splitlines()) if event]


def parse(line: str) -> dict | None:
    """Return a log line's event, or None where it is cut."""
    try:
        return {name: math.nan if value is None else value for name, value in json.loads(line).items()}
    except json.JSONDecodeError:
        return None


def describe(event: dict) -> str:
    """Return an event as a line for people."""
    if event["event"] == "start":
        return describe_start(event)
    if event["event"] == "valid":
        return describe_validation(event)
    if event["event"] == "warning":
        return event["message"]
    if event["event"] == "stop":
        return describe_stop(event)
    extras = [f"MFU {event['mfu']:.1%}"] if "mfu" in event else []
    if event.get("peak"):
        extras[-1] += f" (now of {event['peak']})"
    for name, words in (("data_wait", "waiting for data"), ("checkpoint_wait", "for checkpoints")):
        if event.get(name, 0) >= SHOWN_WAIT:
            extras.append(f"{words} {event[name]:.0%}")
    if event.get("skipped"):
        extras.append(f"{event['skipped']} step(s) skipped")
    return "  ".join(
        [
            f"step {event['step']:>6}/{event['steps']}",
            f"epoch {event['epoch']}",
            f"loss {event['loss']:.4f}",
            f"{event['source_tokens_per_second']:,.0f} source + "
            f"{event['target_tokens_per_second']:,.0f} target tokens/s",
            f"padding {event['padding']:.1%}",
            *extras,
            f"rate {event['learning_rate']:.2e}",
            f"{format_seconds(event['seconds_left'])} left",
        ]
    )


def describe_start(event: dict) -> str:
    """Return what is trained on what."""
    peak = f"; MFU is the share of {event['peak']}" if event.get("peak") else ""
    surplus = event.get("surplus_workers", 0)
    wait = f" ({surplus} more wait: {event['lanes']} lanes cannot be shared out evenly among them)" if surplus else ""
    return (
        f"training: {event['parameters'] / 1e6:.1f} M parameters, {event['steps']} steps, {event['workers']} "
        f"worker(s) on {event['device']} in {event['precision']}{wait}, from step {event['step']}{peak}"
    )


def describe_stop(event: dict) -> str:
    """Return why training ended before its last step."""
    reasons = {
        "end": "the driver was interrupted, or the number of workers changes",
        "move": "a worker was asked to go",
    }
    return f"step {event['step']:>6}  all is saved, and training stops: {reasons[event['reason']]}"


def describe_validation(event: dict) -> str:
    """Return what validation found; of one beside the training the scores come later, as an event of their own."""
    found = []
    if "loss" in event:
        found.append(f"validation loss {event['loss']:.4f}, perplexity {event['perplexity']:.2f}")
    names = {"bleu": "BLEU {:.2f}", "chrf": "chrF {:.2f}", "accuracy": "accuracy {:.4f}"}
    found += [shown.format(event[name]) for name, shown in names.items() if name in event]
    took = f" in {format_seconds(event['validation_seconds'])}" if "validation_seconds" in event else ""
    return f"step {event['step']:>6}  {', '.join(found)}{took}{' (best)' if event['is_best'] else ''}"


def format_seconds(seconds: float) -> str:
    """Return a time as h:mm:ss or m:ss; an estimate that has run out is 0:00."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
