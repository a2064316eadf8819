"""Analysis: which parts of a model carry a behavior."""

from excise.analysis.attribution import Attribution, attribute
from excise.analysis.confirmation import Confirmation, Effect
from excise.analysis.localise import Components, components
from excise.analysis.pools import KINDS, Component, Kind

__all__ = [
    "KINDS",
    "Attribution",
    "Component",
    "Components",
    "Confirmation",
    "Effect",
    "Kind",
    "attribute",
    "components",
]
