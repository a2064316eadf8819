"""Activations: residuals at chosen positions of every layer, and streaming moments of them."""

from excise.activations.capture import RESPONSE_TOKENS, Residuals, capture_moments, capture_residuals
from excise.activations.moments import MomentAccumulator, Moments
from excise.activations.positions import Plan, plan_positions

__all__ = [
    "RESPONSE_TOKENS",
    "MomentAccumulator",
    "Moments",
    "Plan",
    "Residuals",
    "capture_moments",
    "capture_residuals",
    "plan_positions",
]
