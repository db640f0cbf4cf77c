"""Rank-k factors of a group of weighted matrices that share one basis.

The factors minimise sum_i ||S_i (W_i - B C_i) R_i||^2 over the shared basis B and the coefficients C_i, with
R_i R_i^T = H_i. One decomposition covers all ranks: the columns of B are ordered, and the leading k of them are the
basis of rank k. See docs/how-it-works.md#several-matrices-one-basis.

Members are processed one after the other and coefficients are computed on request, so that only one member's matrices
need to be in memory at a time, however many layers a group spans.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from basis_sharing.errors import NumericalError
from basis_sharing.linalg.whitening import CholeskyWhitening, Whitening, cholesky_whitening, positive_cholesky


class Member(Protocol):
    """One matrix of a group with its weighting; implementations may recompute the matrices at every access."""

    @property
    def shape(self) -> tuple[int, int]:
        """``(d_in, d_out)``."""
        ...

    @property
    def W(self) -> Tensor:  # noqa: N802 - the mathematics' name
        """The weight, shape ``[d_in, d_out]``, fp64."""
        ...

    @property
    def S(self) -> Whitening:  # noqa: N802 - the mathematics' name
        """Weighting of the input side."""
        ...

    @property
    def G(self) -> Tensor:  # noqa: N802 - the mathematics' name
        """S^T S, shape ``[d_in, d_in]``, fp64."""
        ...

    @property
    def H(self) -> Tensor | None:  # noqa: N802 - the mathematics' name
        """Weighting of the output side, symmetric positive definite, ``[d_out, d_out]``, fp64; None: the identity."""
        ...

    @property
    def key(self) -> object:
        """A key that is equal for members with the same W and H."""
        ...

    @property
    def input_key(self) -> object:
        """A key that is equal for members of a group with the same S."""
        ...

    @property
    def output_scale(self) -> float | None:
        """Mean of the diagonal of H; None without H."""
        ...


@dataclass(frozen=True)
class Weighted:
    """A :class:`Member` that holds its matrices.

    Attributes:
        W: Shape ``[d_in, d_out]``, fp64.
        S: Weighting of the input side. Members with the same weighting must hold the same object.
        H: Weighting of the output side, symmetric positive definite, shape ``[d_out, d_out]``; None: the identity.
    """

    W: Tensor
    S: Whitening
    H: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """``(d_in, d_out)``."""
        d_in, d_out = self.W.shape
        return d_in, d_out

    @property
    def G(self) -> Tensor:  # noqa: N802 - the mathematics' name
        """S^T S, shape ``[d_in, d_in]``."""
        if isinstance(self.S, CholeskyWhitening):
            return self.S.moment
        return self.S.apply_transposed(self.S.apply(torch.eye(len(self.W)).to(self.W)))

    @property
    def key(self) -> object:
        """Identity of the object."""
        return id(self)

    @property
    def input_key(self) -> object:
        """Identity of S."""
        return id(self.S)

    @property
    def output_scale(self) -> float | None:
        """Mean of the diagonal of H; None without H."""
        return None if self.H is None else self.H.diagonal().mean().item()


@dataclass(frozen=True)
class Truncation:
    """Factors of a group, W_i ~ B C_i, at every rank up to K = ``len(losses) - 1``.

    The coefficients of rank k are the leading k rows of ``left @ W_i`` or of ``parts[i]``, whichever is set. If neither
    is set, they are the least-squares optimum for the leading k columns of B.

    Attributes:
        basis: All columns of B, shape ``[d_in, K]``.
        losses: Weighted squared error at ranks 0, 1, ..., K, non-increasing; shape ``[K + 1]``.
        members: The matrices that were truncated.
        left: Shape ``[K, d_in]``, or None.
        parts: One matrix per member, shape ``[K, d_out_i]``, or None.
    """

    basis: Tensor
    losses: Tensor
    members: Sequence[Member]
    left: Tensor | None = None
    parts: tuple[Tensor, ...] | None = None

    @property
    def total(self) -> float:
        """The loss at rank 0."""
        return self.losses[0].item()

    def coefficients(self, rank: int) -> Iterator[Tensor]:
        """Yield C_i of every member, shape ``[rank, d_out_i]``."""
        for index, member in enumerate(self.members):
            if self.parts is not None:
                yield self.parts[index][:rank]
            elif self.left is not None:
                yield self.left[:rank] @ member.W
            else:
                L, projected = _projected(member, self.basis[:, :rank])
                yield torch.linalg.solve_triangular(L.T, projected, upper=True)


def loss_of(member: Member, error: Tensor) -> float:
    """Return the weighted squared error tr(E^T S^T S E H) of an error E, shape ``[d_in, d_out]``."""
    weighted, H = member.S.apply(error), member.H
    right = weighted if H is None else weighted @ H
    return (weighted * right).sum().item()


def truncate(members: Sequence[Member]) -> Truncation:
    """Return the factors of a group at all ranks.

    With one S for all members the singular value decomposition S [W_1 R_1 ... W_n R_n] = U Sigma V^T gives the optimum,
    B = S^-1 U Sigma and C_i = Sigma^-1 U^T S W_i (without R: Basis Sharing, equation 5). If the S_i differ, there is no
    closed form: B is computed from the mean of the S_i^T S_i, each divided by its trace, with each W_i scaled by the
    square root of its trace, and each C_i is the optimum for its own S_i. The losses are those of the returned factors
    in both cases.

    Only the singular vectors of one side are needed. They are eigenvectors of the smaller of the two Gram matrices,
    with ``d_in`` or ``sum_i d_out_i`` rows.

    Args:
        members: Matrices with the same number of rows.

    Raises:
        NumericalError: A matrix contains NaN or infinity.
    """
    unit = _unit(members)
    S, scales = _common(members)
    alike = _alike(members)
    left, parts = None, None
    if _wide(members):
        energy, vectors = torch.linalg.eigh(_left_product(members, S, scales, unit))
        energy, vectors = energy.flip(0).clamp_min(0), vectors.flip(1)
        # Avoid 0 / 0 for directions without energy, where the scale between B and C is arbitrary.
        sigma = energy.sqrt()
        sigma = torch.where(sigma > 1e-12 * sigma[0], sigma, torch.ones_like(sigma))
        basis = S.solve(vectors * sigma)
        if alike:
            left = S.apply_transposed(vectors / sigma).T
    else:
        product, roots = _right_product(members, S, scales, unit)
        energy, vectors = torch.linalg.eigh(product)
        energy, vectors = energy.flip(0).clamp_min(0), vectors.flip(1)
        slices = vectors.split([member.shape[1] for member in members])
        basis = vectors.new_zeros(members[0].shape[0], len(vectors))
        coefficients = []
        for member, root, scale, V in zip(members, roots, scales, slices, strict=True):
            basis += member.W @ (V if root is None else root @ V) * scale
            coefficients.append((V if root is None else torch.linalg.solve_triangular(root.T, V, upper=True)).T / scale)
        parts = tuple(coefficients) if alike else None
    if not alike:
        energy = sum((_kept_energy(member, basis, unit) for member in members), torch.zeros_like(energy))
    return Truncation(basis, (unit * tails(energy)).cpu(), members, left, parts)


def _alike(members: Sequence[Member]) -> bool:
    return all(member.input_key == members[0].input_key for member in members)


def _wide(members: Sequence[Member]) -> bool:
    return sum(member.shape[1] for member in members) >= members[0].shape[0]


def _unit(members: Sequence[Member]) -> float:
    """Return the largest mean diagonal of the members' H, or 1 without any H; 0 if no output affects the loss.

    Each H is divided by it before the decomposition: the scale of H would otherwise be divided between B and C, and
    that of loss gradients is too small for fp16.
    """
    return max((member.output_scale for member in members if member.output_scale is not None), default=1.0)


def _output_weighting(member: Member, unit: float) -> Tensor | None:
    """Return H / unit; None for the identity, also if ``unit`` is 0, where all factors lose nothing."""
    if unit == 0:
        return None
    H = member.H
    return None if H is None else H / unit


def _common(members: Sequence[Member]) -> tuple[Whitening, list[float]]:
    """Return one S for all members, and the factors by which their columns have to be scaled."""
    if not all(torch.isfinite(member.W).all() for member in members):
        raise NumericalError("a weight matrix contains NaN or infinity: the model is damaged.")
    if _alike(members):
        return members[0].S, [1.0] * len(members)
    mean, traces = torch.zeros(()), []
    for member in members:
        gram = member.G
        traces.append(gram.trace().item())
        mean = mean.to(gram.device) + gram / (traces[-1] * len(members))
    return cholesky_whitening(mean), [(trace * len(traces) / sum(traces)) ** 0.5 for trace in traces]


def _left_product(members: Sequence[Member], S: Whitening, scales: Sequence[float], unit: float) -> Tensor:
    total: Tensor | None = None
    for member, scale in zip(members, scales, strict=True):
        W, H = member.W, _output_weighting(member, unit)
        product = scale**2 * ((W if H is None else W @ H) @ W.T)
        total = product if total is None else total.add_(product)
    assert total is not None
    return S.apply(S.apply(total).T)


def _right_product(
    members: Sequence[Member], S: Whitening, scales: Sequence[float], unit: float
) -> tuple[Tensor, list[Tensor | None]]:
    """Return M^T M for M = S [s_1 W_1 R_1 ...], and the R_i (None for the identity)."""
    roots, columns = [], []
    for member, scale in zip(members, scales, strict=True):
        H = _output_weighting(member, unit)
        root = None if H is None else positive_cholesky(H)[0]
        roots.append(root)
        columns.append(S.apply(member.W if root is None else member.W @ root) * scale)
    M = torch.cat(columns, dim=1)
    return M.T @ M, roots


def _projected(member: Member, basis: Tensor) -> tuple[Tensor, Tensor]:
    """Return L and P = L^-1 B^T G W, with L L^T = B^T G B; the optimal coefficients are L^-T P."""
    GB = member.G @ basis
    L, _ = positive_cholesky(basis.T @ GB)
    return L, torch.linalg.solve_triangular(L, GB.T @ member.W, upper=False)


def _kept_energy(member: Member, basis: Tensor, unit: float) -> Tensor:
    """Return by how much each column of the basis reduces a member's loss if its coefficients are optimal."""
    _, projected = _projected(member, basis)
    H = _output_weighting(member, unit)
    return (projected * (projected if H is None else projected @ H)).sum(1)


def tails(energy: Tensor) -> Tensor:
    """Return the losses at ranks 0 to K: the sums of the energies of the columns that are cut off."""
    return torch.cat([energy.flip(0).cumsum(0).flip(0), energy.new_zeros(1)])


def losses_under(members: Sequence[Member], factors: Truncation) -> Tensor:
    """Return the losses of factors at ranks 0 to K under another weighting than the one they were computed with.

    Args:
        members: The matrices with the weighting to evaluate under.
        factors: The factors; their coefficients must be nested (one S for all members), and lose nothing at rank K.
    """
    K = factors.basis.shape[1]
    total = torch.zeros(K, K, dtype=torch.float64)
    for member, C in zip(members, factors.coefficients(K), strict=True):
        X, H = member.S.apply(factors.basis), member.H
        total = total.to(X.device) + (X.T @ X) * ((C if H is None else C @ H) @ C.T)
    # What rank k loses is the product of the columns that are cut off: the sum of the entries below and right of k.
    lost = total.flip(0, 1).cumsum(0).cumsum(1).diagonal().flip(0)
    return torch.cat([lost, lost.new_zeros(1)]).cpu()
