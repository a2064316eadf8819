"""Search: which edit removes a behavior at the least damage. The package itself is callable: `excise.search(...)`."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from excise.search.axes import Axes
from excise.search.front import Choice, choose, non_dominated
from excise.search.job import method_for, search
from excise.search.methods import Method, known_methods, method_named, register
from excise.search.objective import BehaviorObjective
from excise.search.proposer import Proposer, TreeProposer
from excise.search.result import FrontPoint, SearchResult
from excise.search.space import Space
from excise.search.study import Objective, Study, run_study
from excise.search.task import TRIALS, Budget, Task
from excise.search.trial import Limits, Measured, Parameters, Trial

__all__ = [
    "TRIALS",
    "Axes",
    "BehaviorObjective",
    "Budget",
    "Choice",
    "FrontPoint",
    "Limits",
    "Measured",
    "Method",
    "Objective",
    "Parameters",
    "Proposer",
    "SearchResult",
    "Space",
    "Study",
    "Task",
    "TreeProposer",
    "Trial",
    "choose",
    "known_methods",
    "method_for",
    "method_named",
    "non_dominated",
    "register",
    "run_study",
    "search",
]


class _CallablePackage(ModuleType):
    """`excise.search` is this package as well as the function; calling either does the same."""

    def __call__(self, *args: Any, **kwargs: Any) -> SearchResult:
        return search(*args, **kwargs)


sys.modules[__name__].__class__ = _CallablePackage
