"""Reports: HTML pages and a model card, made from the content of `result.json` or `audit.json` alone."""

from __future__ import annotations

from excise.report.audit_page import write_audit
from excise.report.write import write_report

__all__ = ["write_audit", "write_report"]
