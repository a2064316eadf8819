"""Analysis: which parts of a model carry a behavior, and what it takes to remove it."""

from excise.analysis.attribution import Attribution, attribute
from excise.analysis.audit import Audit, audit
from excise.analysis.confirmation import Confirmation, Effect
from excise.analysis.localise import Components, components
from excise.analysis.pools import KINDS, Component, Kind

__all__ = [
    "KINDS",
    "Attribution",
    "Audit",
    "Component",
    "Components",
    "Confirmation",
    "Effect",
    "Kind",
    "attribute",
    "audit",
    "components",
]
