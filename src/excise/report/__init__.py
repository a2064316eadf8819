"""The report: one HTML page and a model card, made from `result.json` alone; and the page of `eval.json`."""

from __future__ import annotations

from excise.report.write import write_evaluation, write_report

__all__ = ["write_evaluation", "write_report"]
