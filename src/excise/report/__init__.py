"""Reports: HTML pages and a model card, from the content of `result.json`, `eval.json` or `audit.json` alone."""

from __future__ import annotations

from excise.report.audit_page import write_audit
from excise.report.write import write_evaluation, write_report

__all__ = ["write_audit", "write_evaluation", "write_report"]
