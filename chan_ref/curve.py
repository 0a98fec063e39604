"""The learning curve of a run as SVG: the loss, and the recalls on the validation images.

It is written by hand, because it is drawn after every epoch and the same run must give the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil, floor, log10

from .train_config import EpochLog

_WIDTH, _HEIGHT = 760, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 34, 38
_INK, _GRID, _BEST = "#333333", "#dddddd", "#d62728"

Line = tuple[str, str, Callable[[EpochLog], float]]
"""A line's name, color, and its value at an epoch."""

LOSS: tuple[Line, ...] = (("loss per pair", "#1f77b4", lambda log: log.loss),)
RECALLS: tuple[Line, ...] = (
    ("image-to-text R@1", "#1f77b4", lambda log: log.i2t.r1),
    ("R@10", "#9ecae1", lambda log: log.i2t.r10),
    ("text-to-image R@1", "#2ca02c", lambda log: log.t2i.r1),
    ("R@10", "#98df8a", lambda log: log.t2i.r10),
)


def curve_svg(logs: Sequence[EpochLog]) -> str:
    """Draw the epochs of a run: the loss on the left, recalls in percent on the right, the best epoch marked."""
    half = _WIDTH // 2
    panels = _panel(logs, 0, half, LOSS, None) + _panel(logs, half, half, RECALLS, 100.0)
    best = max(logs, key=lambda log: log.rsum)
    title = f"best epoch {best.epoch}: rsum {best.rsum:.1f}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" '
        f'font-size="11" fill="{_INK}"><title>Learning curve, {title}</title>'
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>{panels}'
        f'<text x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 6}" text-anchor="end" fill="{_BEST}">{title}</text></svg>\n'
    )


def _panel(logs: Sequence[EpochLog], left: int, width: int, lines: Sequence[Line], top: float | None) -> str:
    """One pair of axes from x = `left` on; the y axis goes from 0 to `top`, or to the largest value."""
    values = [[value(log) for log in logs] for _, _, value in lines]
    highest = top or max(max(row) for row in values) or 1.0
    step = _step(highest)
    highest = top or ceil(highest / step) * step
    first, last = left + _LEFT, left + width - _RIGHT
    low, high = _HEIGHT - _BOTTOM, _TOP
    epochs = [log.epoch for log in logs]

    def x(epoch: float) -> float:
        return first + (last - first) * epoch / max(1, epochs[-1])

    def y(value: float) -> float:
        return low - (low - high) * value / highest

    parts = []
    for tick in range(floor(highest / step + 1e-9) + 1):
        value = tick * step
        parts.append(f'<path d="M{first} {y(value):.1f}H{last}" stroke="{_GRID}"/>')
        parts.append(f'<text x="{first - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{value:g}</text>')
    every = max(1, round(_step(epochs[-1] or 1)))
    parts += [
        f'<text x="{x(epoch):.1f}" y="{low + 15}" text-anchor="middle">{epoch}</text>'
        for epoch in range(0, epochs[-1] + 1, every)
    ]
    parts.append(f'<text x="{first}" y="{_HEIGHT - 6}">epoch</text>')
    best = max(logs, key=lambda log: log.rsum).epoch
    parts.append(f'<path d="M{x(best):.1f} {low}V{high}" stroke="{_BEST}" stroke-dasharray="3 3"/>')
    at = first
    for (name, color, _), row in zip(lines, values, strict=True):
        points = " ".join(f"{x(epoch):.1f},{y(value):.1f}" for epoch, value in zip(epochs, row, strict=True))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="1.6"/>')
        parts += [f'<circle cx="{x(epochs[0]):.1f}" cy="{y(row[0]):.1f}" r="2.5" fill="{color}"/>'] * (len(row) == 1)
        parts.append(
            f'<path d="M{at} 16h14" stroke="{color}" stroke-width="2.5"/><text x="{at + 18}" y="20">{name}</text>'
        )
        at += 30 + 6 * len(name)
    return "".join(parts)


def _step(highest: float) -> float:
    """A round distance of ticks, so that there are three to seven."""
    power = 10.0 ** floor(log10(highest / 4))
    return next(power * factor for factor in (1, 2, 5, 10) if highest / (power * factor) <= 6)
