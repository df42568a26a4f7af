"""What training says: one JSON line an event in `log.jsonl`, and the same as lines for people."""

from __future__ import annotations

import json

from tfray import storage

LOG = "log.jsonl"


def write_event(out: str, event: dict) -> None:
    """Append one event to a run's log."""
    storage.append_line(storage.join(out, LOG), json.dumps(event))


def read_events(out: str) -> list[dict]:
    """Return a run's events; a line cut by a kill is left out."""
    path = storage.join(out, LOG)
    lines = storage.read_text(path).splitlines() if storage.exists(path) else []
    return [event for event in map(parse, lines) if event]


def parse(line: str) -> dict | None:
    """Return a log line's event, or None where it is cut."""
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return None


def describe(event: dict) -> str:
    """Return an event as a line for people."""
    if event["event"] == "start":
        return (
            f"training: {event['parameters'] / 1e6:.1f} M parameters, {event['steps']} steps, {event['workers']} "
            f"worker(s) on {event['device']} in {event['precision']}, from step {event['step']}"
        )
    if event["event"] == "valid":
        best = " (best)" if event["is_best"] else ""
        return (
            f"step {event['step']:>6}  validation loss {event['loss']:.4f}, perplexity {event['perplexity']:.2f}{best}"
        )
    return (
        f"step {event['step']:>6}/{event['steps']}  epoch {event['epoch']}  loss {event['loss']:.4f}  "
        f"{event['source_tokens_per_second']:,.0f} source + {event['target_tokens_per_second']:,.0f} target tokens/s  "
        f"padding {event['padding']:.1%}  rate {event['learning_rate']:.2e}  "
        f"{format_seconds(event['seconds_left'])} left"
    )


def format_seconds(seconds: float) -> str:
    """Return a time as h:mm:ss or m:ss; an estimate that has run out is 0:00."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
