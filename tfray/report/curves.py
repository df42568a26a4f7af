"""The training log as a picture: losses, scores, learning rate, gradient norm and speed by step."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, MaxNLocator, NullFormatter, PercentFormatter

TRAIN_COLOR, VALID_COLOR = "#8fb3d9", "#c8501e"
RATE_COLOR, SPEED_COLOR, NORM_COLOR, SECOND_COLOR = "#3b5b92", "#5a9a68", "#7d5ba6", "#b58900"
SCORES = {"bleu": ("BLEU", VALID_COLOR), "chrf": ("chrF", SECOND_COLOR), "accuracy": ("accuracy", VALID_COLOR)}
WAITS = {
    "data_wait": ("waiting for data", RATE_COLOR),
    "checkpoint_wait": ("waiting for checkpoints", SECOND_COLOR),
    "padding": ("padding", TRAIN_COLOR),
    "mfu": ("MFU", SPEED_COLOR),
}

EventKind = Literal["train", "valid"]
Events = list[dict[str, Any]]


@dataclass(frozen=True)
class Curve:
    """One value by step, in the order of the steps."""

    steps: list[int]
    values: list[float]

    def best(self, is_highest: bool = False) -> tuple[int, float] | None:
        """Return the step with the lowest (or highest) finite value and that value."""
        points = zip(self.steps, self.values, strict=True)
        finite = [point for point in points if math.isfinite(point[1])]
        choose = max if is_highest else min
        return choose(finite, key=lambda point: point[1], default=None)


def draw_curves(events: Events) -> bytes | None:
    """Return the curves of a training log's events as a PNG; None where no event has a point."""
    events = drop_undone(events)
    if not any(event["event"] in ("train", "valid") for event in events):
        return None
    figure = Figure(figsize=(15, 8), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, 3).flatten()
    draw_losses(panels[0], events)
    draw_scores(panels[1], events)
    draw_line(panels[2], read_curve(events, "train", "target_tokens_per_second"), "Speed", "target tokens/s")
    draw_line(panels[3], read_curve(events, "train", "learning_rate"), "Learning rate", "", RATE_COLOR)
    panels[3].yaxis.set_major_formatter(FuncFormatter(lambda rate, _: f"{rate:g}"))
    draw_norms(panels[4], events)
    draw_shares(panels[5], events)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=110)
    return picture.getvalue()


def drop_undone(events: Events) -> Events:
    """Return the events that count: a start from a step takes back what the run before did after it."""
    kept: Events = []
    for event in events:
        if event["event"] == "start":
            kept = [other for other in kept if other.get("step", 0) <= event["step"]]
        kept.append(event)
    return kept


def read_curve(events: Events, kind: EventKind, name: str) -> Curve:
    """Return one value of one kind of event; of a step that was done again, the later."""
    by_step = {event["step"]: event[name] for event in events if event["event"] == kind and event.get(name) is not None}
    steps = sorted(by_step)
    return Curve(steps, [by_step[step] for step in steps])


def plot(axes: Axes, curve: Curve, label: str, color: str, marker: str = "") -> Line2D:
    """Draw a curve and return its line; a single point, which has no line, gets a marker."""
    marker = "o" if len(curve.steps) == 1 else marker
    style = {"color": color, "marker": marker, "markersize": 4}
    return axes.plot(curve.steps, curve.values, label=label, **style)[0]


def draw_losses(axes: Axes, events: Events) -> None:
    """Draw the loss of training and of validation, and mark the best of the latter."""
    train, valid = read_curve(events, "train", "loss"), read_curve(events, "valid", "loss")
    plot(axes, train, "training", TRAIN_COLOR)
    plot(axes, valid, "validation", VALID_COLOR, marker="o")
    if best := valid.best():
        mark_best(axes, *best, "{:.3f}")
    axes.set(title="Loss", ylabel="nats per target token")
    finish(axes)


def mark_best(axes: Axes, step: int, value: float, shown: str) -> None:
    """Ring the best validation and name it in the legend."""
    label = f"best: {shown.format(value)} at step {step:,}"
    axes.plot(step, value, "o", ms=11, mfc="none", mew=1.8, color=VALID_COLOR, label=label)


def draw_scores(axes: Axes, events: Events) -> None:
    """Draw what decoding of validation pairs scored: BLEU and chrF, or accuracy."""
    axes.set(title="Validation scores")
    curves = {name: read_curve(events, "valid", name) for name in SCORES}
    for name, curve in curves.items():
        if curve.steps:
            plot(axes, curve, *SCORES[name], marker="o")
    axes.set_ylim(bottom=max(0.0, axes.get_ylim()[0]))
    main = curves["bleu"] if curves["bleu"].steps else curves["accuracy"]
    if best := main.best(is_highest=True):
        mark_best(axes, *best, "{:.2f}" if curves["bleu"].steps else "{:.4f}")
    if not any(curve.steps for curve in curves.values()):
        axes.text(0.5, 0.5, "nothing was decoded", ha="center", va="center", transform=axes.transAxes, color="gray")
    finish(axes)


def draw_norms(axes: Axes, events: Events) -> None:
    """Draw the gradient norm, its mean and its largest between two lines of the log."""
    mean, largest = (read_curve(events, "train", name) for name in ("gradient_norm", "gradient_norm_max"))
    if largest.steps:
        plot(axes, largest, "largest", TRAIN_COLOR)
    plot(axes, mean, "mean", NORM_COLOR)
    if any(value > 0 and math.isfinite(value) for value in mean.values):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda norm, _: f"{norm:g}"))
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set(title="Gradient norm (before clipping)")
    finish(axes)


def draw_shares(axes: Axes, events: Events) -> None:
    """Draw where time and work go: MFU, padding, waiting."""
    for name, (label, color) in WAITS.items():
        curve = read_curve(events, "train", name)
        if curve.steps:
            plot(axes, curve, label, color)
    axes.set(title="Shares")
    axes.set_ylim(0, max(0.01, 1.5 * axes.get_ylim()[1]))  # room for the legend
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    finish(axes)
    if axes.get_legend() is not None:
        axes.legend(frameon=False, ncols=2, loc="upper center")


def draw_line(axes: Axes, curve: Curve, title: str, label: str, color: str = SPEED_COLOR) -> None:
    """Draw a panel of one curve, from zero on."""
    plot(axes, curve, "", color)
    axes.set(title=title, ylabel=label)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(EngFormatter(sep=""))
    finish(axes)


def finish(axes: Axes) -> None:
    """Give a panel its step axis, grid, and a legend where there is something to tell apart."""
    axes.set_xlabel("step")
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False)
