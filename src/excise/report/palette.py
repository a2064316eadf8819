"""The colours of the report: one light and one dark value per purpose, for the page and the figures alike.

Figures are made in the light colours; the page's script replaces each by its dark partner. So every light value that
has a partner of its own must be unique.
"""

from __future__ import annotations

# purpose: (light, dark)
COLOURS: dict[str, tuple[str, str]] = {
    "paper": ("#f6f5f2", "#13171c"),
    "card": ("#ffffff", "#1b2128"),
    "ink": ("#1c232b", "#e5e9ed"),
    "muted": ("#55606b", "#a2adb8"),
    "line": ("#dcdedf", "#333c46"),
    "grid": ("#e9eaeb", "#29313a"),
    "accent": ("#0a6a72", "#5cc5ce"),
    "accent-soft": ("#e2f0f0", "#15343a"),
    "before": ("#8a5a1f", "#e0b072"),
    "pass": ("#1a683b", "#74d39c"),
    "pass-soft": ("#e3f1e8", "#163323"),
    "miss": ("#a1301a", "#ff9d86"),
    "miss-soft": ("#fae8e3", "#43201a"),
    "open": ("#54606c", "#a3aeb8"),
    "open-soft": ("#eaecee", "#2a323c"),
    "faint": ("#929ca6", "#74808b"),
    "attention": ("#0b62ae", "#6fb5f4"),
    "mlp": ("#bf4f0a", "#f3a468"),
    "expert": ("#117d5a", "#60d1a6"),
    "mixer": ("#7b45b1", "#c49ded"),
    "embedding": ("#69707a", "#b1b8bf"),
    "scale-low": ("#b3531a", "#e28c52"),
    "scale-middle": ("#f3f1eb", "#222930"),
    "scale-high": ("#0b6b75", "#50b8c1"),
}
SERIES = ("attention", "mlp", "expert", "mixer", "embedding", "accent", "before")


def light(purpose: str) -> str:
    """The light colour for a purpose."""
    return COLOURS[purpose][0]


def series(index: int) -> str:
    """The light colour of the n-th line of a plot."""
    return light(SERIES[index % len(SERIES)])


def dark_partners() -> dict[str, str]:
    """The dark colour that replaces each light one."""
    return dict(COLOURS.values())
