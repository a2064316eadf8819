"""Models: loading, the survey of what writes to the residual stream, its proof, reversible edits, generation."""

from excise.model.editable import EditableModel
from excise.model.load import load
from excise.model.survey import Survey, Unresolved

__all__ = ["EditableModel", "Survey", "Unresolved", "load"]
