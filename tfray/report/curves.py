"""The training log as a picture: losses, learning rate and speed by step."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter

from tfray.errors import InputError

logger = logging.getLogger(__name__)

TRAIN_COLOR, VALID_COLOR = "#8fb3d9", "#c8501e"
RATE_COLOR, SPEED_COLOR = "#3b5b92", "#5a9a68"

Event = Literal["train", "valid"]


@dataclass(frozen=True)
class Curve:
    """One value by step, in the order of the steps."""

    steps: list[int]
    values: list[float]

    def best(self) -> tuple[int, float] | None:
        """Return the step with the lowest finite value and that value."""
        points = zip(self.steps, self.values, strict=True)
        finite = [point for point in points if math.isfinite(point[1])]
        return min(finite, key=lambda point: point[1], default=None)


def draw_curves(log: Path, picture: Path) -> None:
    """Write the curves of a training log as a PNG."""
    lines = read_log(log)
    figure = Figure(figsize=(12, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    loss_axes, rate_axes = figure.subplots(1, 2)
    draw_losses(loss_axes, lines)
    draw_rates(rate_axes, lines)
    figure.savefig(picture, format="png", dpi=150)


def read_log(log: Path) -> list[dict[str, Any]]:
    """Return the lines about training and validation in the order of the log."""
    lines = [line for line in parse_lines(log) if line.get("event") in ("train", "valid")]
    if not lines:
        raise InputError(
            f"{log} has no line about training or validation yet, so there are no curves to draw; "
            "a line comes every training.log_every steps"
        )
    return lines


def parse_lines(log: Path) -> Iterator[dict[str, Any]]:
    """Yield the log's lines; those that a killed process has cut are skipped and counted."""
    cut = 0
    # A cut may fall inside a character, and a resumed run may have appended to the cut line.
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            cut += 1
    if cut:
        logger.warning("%s: skipped %d cut lines", log, cut)


def read_curve(lines: list[dict[str, Any]], event: Event, name: str) -> Curve:
    """Return one value of one event; of a step that was done again after a crash, the later."""
    by_step = {line["step"]: line[name] for line in lines if line["event"] == event and line.get(name) is not None}
    steps = sorted(by_step)
    return Curve(steps, [by_step[step] for step in steps])


def plot(axes: Axes, curve: Curve, label: str, color: str, marker: str = "") -> Line2D:
    """Draw a curve and return its line; a single point, which has no line, gets a marker."""
    marker = "o" if len(curve.steps) == 1 else marker
    style = {"color": color, "marker": marker, "markersize": 4}
    return axes.plot(curve.steps, curve.values, label=label, **style)[0]


def draw_losses(axes: Axes, lines: list[dict[str, Any]]) -> None:
    """Draw the loss of training and of validation, and mark the best of the latter."""
    train, valid = read_curve(lines, "train", "loss"), read_curve(lines, "valid", "loss")
    plot(axes, train, "training", TRAIN_COLOR)
    plot(axes, valid, "validation", VALID_COLOR, marker="o")
    if best := valid.best():
        mark_best(axes, *best)
    axes.set(title="Loss", ylabel="loss (nats per target token)")
    finish(axes)


def mark_best(axes: Axes, step: int, loss: float) -> None:
    """Ring the best validation and name it in the legend."""
    label = f"best: {loss:.3f} at step {step:,}"
    axes.plot(step, loss, "o", ms=11, mfc="none", mew=1.8, color=VALID_COLOR, label=label)


def draw_rates(axes: Axes, lines: list[dict[str, Any]]) -> None:
    """Draw the learning rate (left axis) and the target tokens per second (right axis)."""
    rate = read_curve(lines, "train", "learning_rate")
    speed = read_curve(lines, "train", "target_tokens_per_second")
    speed_axes = axes.twinx()
    handles = [
        plot(axes, rate, "learning rate", RATE_COLOR),
        plot(speed_axes, speed, "speed", SPEED_COLOR),
    ]
    axes.set(title="Learning rate and speed")
    axes.set_ylabel("learning rate", color=RATE_COLOR)
    axes.set_ylim(bottom=0)
    axes.ticklabel_format(axis="y", scilimits=(-2, 3), useMathText=True)
    speed_axes.set_ylabel("speed (target tokens per second)", color=SPEED_COLOR)
    speed_axes.set_ylim(bottom=0)
    speed_axes.yaxis.set_major_formatter(EngFormatter(sep=""))
    speed_axes.spines["top"].set_visible(False)
    finish(axes)
    axes.legend(handles=handles, loc="lower right", frameon=False)


def finish(axes: Axes) -> None:
    """Give a panel its step axis, grid and legend."""
    axes.set_xlabel("step (optimizer updates)")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.grid(alpha=0.25)
    axes.spines["top"].set_visible(False)
    axes.legend(frameon=False)
