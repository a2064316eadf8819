"""Activations: residuals at chosen positions of every layer, and streaming moments of them."""

from excise.activations.capture import Residuals, Responses, capture_residuals, own_responses, without_end
from excise.activations.moments import MomentAccumulator, Moments
from excise.activations.positions import Plan, plan_positions

__all__ = [
    "MomentAccumulator",
    "Moments",
    "Plan",
    "Residuals",
    "Responses",
    "capture_residuals",
    "own_responses",
    "plan_positions",
    "without_end",
]
