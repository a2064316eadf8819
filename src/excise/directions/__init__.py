"""Directions: which vectors of the residual stream carry the behavior. One method per file."""

from excise.directions import mean_difference, projected
from excise.directions.directions import Directions, Everywhere, PerLayer
from excise.directions.methods import Method, known_methods, method_named, register
from excise.directions.selection import candidate_layers, select
from excise.directions.separability import Separability, measure_separability

__all__ = [
    "Directions",
    "Everywhere",
    "Method",
    "PerLayer",
    "Separability",
    "candidate_layers",
    "known_methods",
    "mean_difference",
    "measure_separability",
    "method_named",
    "projected",
    "register",
    "select",
]
