"""The uncentred covariance of a stream of vectors, exact or as a sketch of bounded size.

Glossary: X the vectors as rows, n their number, m their width, C = XᵀX/n, ρ ridge, B a sketch with BᵀB ≈ XᵀX.

Up to `EXACT_WIDTH` the matrix itself is kept. Wider streams (the inputs of a large MLP) are kept as a Frequent
Directions sketch (Liberty 2013, "Simple and Deterministic Matrix Sketching"): `rank` rows, for which
0 ≤ xᵀXᵀXx − xᵀBᵀBx ≤ Δ for every unit x, where Δ is known at the end, and at most ‖X − X_k‖²_F / (rank − k) for any k.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

EXACT_WIDTH = 2048
SKETCH_RANK = 512


@dataclass(frozen=True)
class SecondMoment:
    """E[xxᵀ] of a stream, in fp32 on the CPU.

    count   n
    trace   of C: the mean squared length
    matrix  C; None where it is sketched
    sketch  B/√n, so that BᵀB/n ≈ C; None where it is exact
    error   bound on the largest eigenvalue of C − BᵀB/n; 0 where it is exact
    """

    count: int
    trace: float
    matrix: Float[Tensor, "width width"] | None
    sketch: Float[Tensor, "rank width"] | None
    error: float = 0.0

    @property
    def width(self) -> int:
        """m."""
        kept = self.matrix if self.matrix is not None else self.sketch
        assert kept is not None
        return kept.shape[-1]

    @property
    def scale(self) -> float:
        """The mean eigenvalue: the unit in which a ridge is given."""
        return self.trace / self.width

    def shrinkage(self) -> float:
        """The share of the identity in the oracle-approximating shrinkage estimate (Chen et al. 2010), between 0 and 1.

        Of (1 − γ)C + γ tr(C)/m I, the γ with the least mean squared error for n Gaussian samples.
        """
        if self.matrix is not None:
            squares = float(self.matrix.square().sum())
        else:
            assert self.sketch is not None
            squares = float((self.sketch @ self.sketch.T).square().sum())
        width, count = self.width, max(self.count, 1)
        above = (1 - 2 / width) * squares + self.trace**2
        below = (count + 1 - 2 / width) * (squares - self.trace**2 / width)
        return 1.0 if below <= 0 else min(1.0, above / below)


class SecondMomentAccumulator:
    """Takes batches of vectors, gives a `SecondMoment`.

    Products are taken in fp32 on the device of the vectors; what is summed over batches is kept in fp64 (of a sketch:
    its rows in fp32, the bound in fp64). Memory: m² numbers up to `EXACT_WIDTH`, else 2 `rank` m.
    """

    def __init__(self, width: int, *, exact_width: int = EXACT_WIDTH, rank: int = SKETCH_RANK) -> None:
        self._width = width
        self._rank = rank
        self._count = 0
        self._squares = 0.0
        self._lost = 0.0
        self._matrix = torch.zeros(width, width, dtype=torch.float64) if width <= exact_width else None
        self._rows: list[Tensor] = []
        self._held = 0

    def update(self, vectors: Float[Tensor, "vector width"]) -> None:
        """Add vectors of any floating dtype, from any device."""
        if len(vectors) == 0:
            return
        exact = vectors.detach().float()
        self._count += len(exact)
        if self._matrix is not None:
            self._matrix += (exact.T @ exact).cpu().double()
            return
        self._squares += float(exact.square().sum(dtype=torch.float64))
        for part in exact.split(self._rank):
            self._rows.append(part.cpu())
            self._held += len(part)
            if self._held >= 2 * self._rank:
                self._shrink()

    def result(self) -> SecondMoment:
        """The second moment so far."""
        count = max(self._count, 1)
        if self._matrix is not None:
            matrix = (self._matrix / count).float()
            return SecondMoment(self._count, float(self._matrix.trace()) / count, matrix, None)
        if self._held > self._rank:
            self._shrink()
        rows = torch.cat(self._rows) if self._rows else torch.zeros(0, self._width)
        return SecondMoment(self._count, self._squares / count, None, rows / count**0.5, self._lost / count)

    def _shrink(self) -> None:
        """Back to `rank` rows: every squared singular value loses that of the first one to go."""
        rows = torch.cat(self._rows)
        values, vectors = torch.linalg.eigh((rows @ rows.T).double())
        values = values.clamp(min=0.0).flip(0)
        vectors = vectors.flip(1)[:, : self._rank]
        lost = float(values[self._rank]) if len(values) > self._rank else 0.0
        kept = values[: self._rank]
        ratio = torch.where(kept > lost, ((kept - lost) / kept.clamp(min=1e-30)).sqrt(), torch.zeros_like(kept))
        self._rows = [(ratio[:, None] * vectors.T).float() @ rows]
        self._held = len(self._rows[0])
        self._lost += lost


class Ridge:
    """C + ρI of one stream, with what is solved and whitened by it.

    ridge  ρ in units of the mean eigenvalue of C; what the shrinkage estimate says is added
    """

    def __init__(self, moment: SecondMoment, *, ridge: float) -> None:
        self.moment = moment
        self.rho = max((ridge + moment.shrinkage()) * moment.scale, moment.error, 1e-12)
        self._factor: Tensor | None = None
        self._spectrum: tuple[Tensor, Tensor] | None = None

    def whitened(self, vectors: Float[Tensor, "*row width"]) -> Float[Tensor, "*row width"]:
        """Coordinates z of vectors a with ‖z‖² = aᵀ(C + ρI)a: equal lengths move the baseline's outputs equally far."""
        if self.moment.matrix is not None:
            return vectors @ self._cholesky(vectors.device)
        basis, values = self._eigen(vectors.device)
        return _scaled(vectors, basis, (values + self.rho).sqrt(), self.rho**0.5)

    def unwhitened(self, coordinates: Float[Tensor, "row width"]) -> Float[Tensor, "row width"]:
        """The inverse of `whitened`; gradients flow through it."""
        if self.moment.matrix is not None:
            factor = self._cholesky(coordinates.device)
            solved: Tensor = torch.linalg.solve_triangular(factor.T, coordinates.T, upper=True)
            return solved.T
        basis, values = self._eigen(coordinates.device)
        return _scaled(coordinates, basis, (values + self.rho).rsqrt(), self.rho**-0.5)

    def solve(self, keys: SecondMoment, weight: float, goal: Float[Tensor, "row width"]) -> Float[Tensor, "row width"]:
        """(C + ρI + `weight`·M)⁻¹ applied to the rows of `goal`, M the second moment of `keys`."""
        if self.moment.matrix is not None and keys.matrix is not None:
            system = self.moment.matrix + weight * keys.matrix
            system.diagonal().add_(self.rho)
            solved: Tensor = torch.linalg.solve(system.double(), goal.T.double())
            return solved.T.float()
        rows = torch.cat([root_of(self.moment), weight**0.5 * root_of(keys)]).double()
        inner = rows @ rows.T
        inner.diagonal().add_(self.rho)
        exact = goal.double()
        within: Tensor = torch.linalg.solve(inner, rows @ exact.T)
        return ((exact - within.T @ rows) / self.rho).float()

    def _cholesky(self, device: torch.device) -> Float[Tensor, "width width"]:
        """Lower triangular F with FFᵀ = C + ρI."""
        if self._factor is None or self._factor.device != device:
            assert self.moment.matrix is not None
            system = self.moment.matrix.double()
            system.diagonal().add_(self.rho)
            self._factor = torch.linalg.cholesky(system).float().to(device)
        return self._factor

    def _eigen(self, device: torch.device) -> tuple[Float[Tensor, "rank width"], Float[Tensor, " rank"]]:
        """Orthonormal rows and their eigenvalues; whatever is orthogonal to them has eigenvalue 0."""
        if self._spectrum is None or self._spectrum[0].device != device:
            assert self.moment.sketch is not None
            rows = self.moment.sketch.double()
            values, left = torch.linalg.eigh(rows @ rows.T)
            large = values > 1e-7 * values.max()
            basis = (left[:, large].T @ rows) / values[large, None].sqrt()
            self._spectrum = basis.float().to(device), values[large].float().to(device)
        return self._spectrum


def _scaled(
    vectors: Float[Tensor, "*row width"],
    basis: Float[Tensor, "rank width"],
    factors: Float[Tensor, " rank"],
    elsewhere: float,
) -> Float[Tensor, "*row width"]:
    return elsewhere * vectors + ((vectors @ basis.T) * (factors - elsewhere)) @ basis


def root_of(moment: SecondMoment) -> Float[Tensor, "rank width"]:
    """Rows R with RᵀR = C, for what is kept of C."""
    if moment.sketch is not None:
        return moment.sketch
    assert moment.matrix is not None
    values, vectors = torch.linalg.eigh(moment.matrix.double())
    rows: Tensor = (values.clamp(min=0.0).sqrt()[:, None] * vectors.T).float()
    return rows
