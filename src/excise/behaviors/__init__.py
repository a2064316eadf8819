"""Behaviors: what is to be removed, as prompts that show it, prompts that do not, and how to tell."""

from excise.behaviors.behavior import Behavior
from excise.behaviors.catalog import known_behaviors
from excise.behaviors.detectors import Detectors
from excise.behaviors.source import Source
from excise.behaviors.splits import SPLITS, PromptSet, Split, Splits, SplitSizes

__all__ = [
    "SPLITS",
    "Behavior",
    "Detectors",
    "PromptSet",
    "Source",
    "Split",
    "SplitSizes",
    "Splits",
    "known_behaviors",
]
