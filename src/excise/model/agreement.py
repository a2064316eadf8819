"""Whether two computations of the same thing differ by no more than rounding does."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

_EXACT = (torch.float32, torch.float64)


def limit(dtype: torch.dtype) -> float:
    """How large a difference can be rounding, as a share of the spread of the logits or the size of the residual.

    1e-3 in fp32. In bf16 the order of sums alone moves a 30-layer model by up to 0.1, and a wrong mask or position by
    about 1, so the limit is 0.25 there.
    """
    return 1e-3 if dtype in _EXACT else 0.25


def logits_agree(found: Float[Tensor, "row vocab"], expected: Float[Tensor, "row vocab"], dtype: torch.dtype) -> bool:
    """Whether two computations of the same logits differ by no more than rounding does."""
    return logits_difference(found, expected) < limit(dtype)


def logits_difference(found: Float[Tensor, "row vocab"], expected: Float[Tensor, "row vocab"]) -> float:
    """The largest root-mean-square difference of a row, as a share of the spread of its logits; infinite for NaN."""
    exact = expected.float()
    error = (found.float() - exact).square().mean(dim=-1).sqrt() / exact.std(dim=-1).clamp(min=1e-12)
    return error.nan_to_num(nan=torch.inf).max().item()


def residual_difference(
    found: Float[Tensor, "token layer hidden"], expected: Float[Tensor, "token layer hidden"], dtype: torch.dtype
) -> float:
    """The largest difference after any layer, as a share of the residual's size there; infinite for NaN.

    That of the worst token; in half precision that of the median one, as a token whose experts are nearly tied may go
    to other ones.
    """
    exact = expected.float()
    error = (found.float() - exact).norm(dim=-1) / exact.norm(dim=-1).clamp(min=1e-12)
    error = error.nan_to_num(nan=torch.inf)
    per_layer = error.amax(dim=0) if dtype in _EXACT else error.median(dim=0).values
    return float(per_layer.max())
