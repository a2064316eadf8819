"""A picture of held-out fronts as an SVG file, behavior rate over first-token KL; imported by other benches.

Path("fronts.svg").write_text(picture([("polish", [(0.02, 0.03), …]), …]))   # (rate, KL in nats) of every point
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

WIDTH, HEIGHT, MARGIN, LEGEND = 760, 440, 56, 190
LEAST_KL, MOST_KL = 0.002, 1.0
COLORS = ("#1f6feb", "#d1242f", "#1a7f37", "#9a6700", "#8250df", "#57606a", "#bf3989", "#0a7ea4")

Series = tuple[str, Sequence[tuple[float, float]]]


def picture(series: Sequence[Series]) -> str:
    """The SVG text. Points of a KL outside the axis are drawn at its end."""
    groups = list(dict.fromkeys(name for name, _ in series))
    color = {name: COLORS[index % len(COLORS)] for index, name in enumerate(groups)}
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif"',
        ' font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        *_axes(),
    ]
    for name, points in series:
        parts += _line(sorted(points), color[name])
    for index, name in enumerate(groups):
        top = MARGIN + 18 * index
        parts.append(f'<circle cx="{WIDTH - LEGEND + 14}" cy="{top}" r="4" fill="{color[name]}"/>')
        parts.append(f'<text x="{WIDTH - LEGEND + 26}" y="{top + 4}">{escape(name)}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _axes() -> list[str]:
    left, right, bottom = MARGIN, WIDTH - LEGEND, HEIGHT - MARGIN
    parts = [f'<path d="M{left} {MARGIN / 2} V{bottom} H{right}" fill="none" stroke="#57606a"/>']
    for kl in (0.003, 0.01, 0.03, 0.1, 0.3):
        x = _x(kl)
        parts.append(f'<path d="M{x:.1f} {MARGIN / 2} V{bottom}" stroke="#d8dee4"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{kl:g}</text>')
    for rate in (0.0, 0.2, 0.4, 0.6, 0.8):
        y = _y(rate)
        parts.append(f'<path d="M{left} {y:.1f} H{right}" stroke="#d8dee4"/>')
        parts.append(f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{rate:.0%}</text>')
    middle = (left + right) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 14}" text-anchor="middle">first-token KL, nats (held out)</text>')
    parts.append(f'<text x="{left}" y="{MARGIN / 2 - 8}">behavior rate (held out)</text>')
    return parts


def _line(points: Sequence[tuple[float, float]], color: str) -> list[str]:
    """Points, and the stairs of those that no other one beats."""
    dots = [f'<circle cx="{_x(kl):.1f}" cy="{_y(rate):.1f}" r="3.5" fill="{color}"/>' for rate, kl in points]
    front: list[tuple[float, float]] = []
    for rate, kl in points:
        if not front or kl < front[-1][1]:
            front.append((rate, kl))
    if not front:
        return dots
    path = f"M{_x(front[0][1]):.1f} {_y(front[0][0]):.1f}" + "".join(
        f" V{_y(rate):.1f} H{_x(kl):.1f}" for rate, kl in front[1:]
    )
    return [f'<path d="{path}" fill="none" stroke="{color}" stroke-width="1.5" opacity="0.7"/>', *dots]


def _x(kl: float) -> float:
    share = math.log(min(max(kl, LEAST_KL), MOST_KL) / LEAST_KL) / math.log(MOST_KL / LEAST_KL)
    return MARGIN + share * (WIDTH - LEGEND - MARGIN)


def _y(rate: float) -> float:
    return HEIGHT - MARGIN - rate * (HEIGHT - 1.5 * MARGIN)
