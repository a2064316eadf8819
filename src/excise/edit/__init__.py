"""Edits: the change of a model's weights as a small, frozen, reversible value."""

from excise.edit.change import Change, LowRank, Mask, Norm, Projection
from excise.edit.control import random_control
from excise.edit.edit import DirectionsLike, Edit, ModelIdentity, SiteEdit, orthonormal, spanning
from excise.edit.schedule import Plateau, Schedule
from excise.edit.writer import EMBEDDING_LAYER, ROLES, Role, Writer

__all__ = [
    "EMBEDDING_LAYER",
    "ROLES",
    "Change",
    "DirectionsLike",
    "Edit",
    "LowRank",
    "Mask",
    "ModelIdentity",
    "Norm",
    "Plateau",
    "Projection",
    "Role",
    "Schedule",
    "SiteEdit",
    "Writer",
    "orthonormal",
    "random_control",
    "spanning",
]
