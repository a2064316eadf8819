"""The methods of the search, one per file: which edits are tried, and in which order."""

from excise.search.methods import polish, schedule
from excise.search.methods.registry import Method, known_methods, method_named, register

__all__ = ["Method", "known_methods", "method_named", "polish", "register", "schedule"]
