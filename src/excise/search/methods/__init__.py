"""The methods of the search, one per file: which edits are tried, and in which order."""

from excise.search.methods import allocation, arditi, kernel, matrix_fit, mean_difference, polish, schedule
from excise.search.methods.registry import Method, known_methods, method_named, register

__all__ = [
    "Method",
    "allocation",
    "arditi",
    "kernel",
    "known_methods",
    "matrix_fit",
    "mean_difference",
    "method_named",
    "polish",
    "register",
    "schedule",
]
