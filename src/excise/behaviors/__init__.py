"""Behaviors: what is to be removed, as prompts that show it, prompts that do not, and how to tell."""

from excise.behaviors.behavior import Behavior
from excise.behaviors.catalog import known_behaviors
from excise.behaviors.detectors import Detectors
from excise.behaviors.prompt import Prompt, Turn
from excise.behaviors.source import Source
from excise.behaviors.splits import SPLITS, LeftOut, PromptSet, Split, Splits, SplitSizes

__all__ = [
    "SPLITS",
    "Behavior",
    "Detectors",
    "LeftOut",
    "Prompt",
    "PromptSet",
    "Source",
    "Split",
    "SplitSizes",
    "Splits",
    "Turn",
    "known_behaviors",
]
