"""The report: one HTML page and a model card, made from the content of `result.json` alone."""

from __future__ import annotations

from excise.report.write import write_report

__all__ = ["write_report"]
