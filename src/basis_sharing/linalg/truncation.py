"""The best rank-k factors of a group of matrices with one basis, each under a weighting of its own (DESIGN 3.2).

What is minimised over the shared B and the C_i is sum_i ||S_i (W_i - B C_i) R_i||^2 with R_i R_i^T = H_i. Every rank
comes out of one decomposition: the columns of B are ordered, and the leading k of them are the factors of rank k.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from basis_sharing.errors import NumericalError
from basis_sharing.linalg.whitening import CholeskyWhitening, Whitening, cholesky_whitening, positive_cholesky


@dataclass(frozen=True)
class Weighted:
    """One matrix of a group, and how its errors count.

    Attributes:
        W: Shape ``[d_in, d_out]``, fp64.
        S: Weighting of the input side. Members that are weighted alike have the same object.
        H: Weighting of the output side, symmetric positive definite, shape ``[d_out, d_out]``; None: the identity.
    """

    W: Tensor
    S: Whitening
    H: Tensor | None = None

    def loss(self, error: Tensor) -> float:
        """Return tr(E^T S^T S E H) for an error E of the shape of W."""
        weighted = self.S.apply(error)
        right = weighted if self.H is None else weighted @ self.H
        return (weighted * right).sum().item()


@dataclass(frozen=True)
class Truncation:
    """Ordered factors of a group: W_i ~ B C_i at every rank up to ``len(losses) - 1``.

    Attributes:
        basis: All columns of B, shape ``[d_in, K]``.
        losses: What is lost at rank 0, 1, ..., K; shape ``[K + 1]``, falling.
        parts: One matrix per member, shape ``[K, d_out_i]``; its leading rows are C_i, up to ``mixing``.
        mixing: Per member the lower triangular L with C_i = L_k^-T parts_k, k by k at rank k; None: the identity.
    """

    basis: Tensor
    losses: Tensor
    parts: tuple[Tensor, ...]
    mixing: tuple[Tensor | None, ...]

    @property
    def total(self) -> float:
        """What is lost if nothing is kept."""
        return self.losses[0].item()

    def coefficients(self, rank: int) -> tuple[Tensor, ...]:
        """Return C_i of every member, shape ``[rank, d_out_i]``."""
        return tuple(
            part[:rank] if L is None else torch.linalg.solve_triangular(L[:rank, :rank].T, part[:rank], upper=True)
            for part, L in zip(self.parts, self.mixing, strict=True)
        )


def most_vectors(members: Sequence[Weighted]) -> int:
    """Return the number of basis vectors at which nothing is lost."""
    return min(members[0].W.shape[0], sum(member.W.shape[1] for member in members))


def truncate(members: Sequence[Weighted]) -> Truncation:
    """Return the factors of a group.

    With one S for all members the singular value decomposition S [W_1 R_1 ... W_n R_n] = U Sigma V^T gives the optimum,
    B = S^-1 U Sigma and C_i = Sigma^-1 U^T S W_i (without R: Basis Sharing, equation 5). Where the S_i differ there is
    no closed form: B comes from the mean of the S_i^T S_i, each divided by its trace, with the traces moved to the
    columns, and each C_i is the optimum for its own S_i. The losses are exact for these factors in either case.

    Only one side's singular vectors are needed; they are eigenvectors of a matrix with ``d_in`` or with
    ``sum_i d_out_i`` rows: the smaller one is decomposed, never the wide matrix itself.

    Args:
        members: Matrices with the same number of rows.

    Raises:
        NumericalError: A matrix contains NaN or infinity.
    """
    members, unit = _scaled(members)
    S, scales = _common(members)
    d_in, n = members[0].W.shape[0], sum(member.W.shape[1] for member in members)
    if n >= d_in:
        energy, vectors = torch.linalg.eigh(_left_product(members, S, scales))
        energy, vectors = energy.flip(0).clamp_min(0), vectors.flip(1)
        # Directions without energy would divide 0 by 0; any scale between B and C is as good for them.
        sigma = energy.sqrt()
        sigma = torch.where(sigma > 1e-12 * sigma[0], sigma, torch.ones_like(sigma))
        basis = S.solve(vectors * sigma)
        left = S.apply_transposed(vectors / sigma).T
        parts = tuple(left @ member.W for member in members)
    else:
        product, roots = _right_product(members, S, scales)
        energy, vectors = torch.linalg.eigh(product)
        energy, vectors = energy.flip(0).clamp_min(0), vectors.flip(1)
        slices = vectors.split([member.W.shape[1] for member in members])
        basis = torch.zeros(d_in, n, dtype=torch.float64)
        found = []
        for member, root, scale, V in zip(members, roots, scales, slices, strict=True):
            basis += member.W @ (V if root is None else root @ V) * scale
            found.append((V if root is None else torch.linalg.solve_triangular(root.T, V, upper=True)).T / scale)
        parts = tuple(found)
    if _alike(members):
        return Truncation(basis, unit * _tails(energy), parts, (None,) * len(members))
    return _refitted(members, basis, unit)


def losses(members: Sequence[Weighted]) -> Tensor:
    """Return :attr:`Truncation.losses`, where one S weighs all members without computing any vectors."""
    if not _alike(members):
        return truncate(members).losses
    S, scales = _common(members)
    d_in, n = members[0].W.shape[0], sum(member.W.shape[1] for member in members)
    product = _left_product(members, S, scales) if n >= d_in else _right_product(members, S, scales)[0]
    return _tails(torch.linalg.eigvalsh(product).flip(0).clamp_min(0))


def left_product(member: Weighted) -> Tensor:
    """Return S W H W^T S^T, ``[d_in, d_in]``; those of members with one S add up to that of their group."""
    return _left_product([member], member.S, [1.0])


def losses_of_product(product: Tensor, most: int) -> Tensor:
    """Return the losses of a group from the sum of its members' left products, at ranks 0 to ``most``."""
    return _tails(torch.linalg.eigvalsh(product).flip(0)[:most].clamp_min(0))


def _alike(members: Sequence[Weighted]) -> bool:
    return all(member.S is members[0].S for member in members)


def _scaled(members: Sequence[Weighted]) -> tuple[Sequence[Weighted], float]:
    """Return the group with output weightings of at most about 1, and the unit its losses then have.

    B and C would share out the scale of the weightings between them; that of loss gradients is too small for fp16.
    """
    unit = max((member.H.diagonal().mean().item() for member in members if member.H is not None), default=1.0)
    if unit == 0:  # nothing depends on the outputs: any factors will do, the ones without weighting are finite
        return [replace(member, H=None) for member in members], 0.0
    return [member if member.H is None else replace(member, H=member.H / unit) for member in members], unit


def _common(members: Sequence[Weighted]) -> tuple[Whitening, list[float]]:
    """Return one S for all members, and the factors for their columns that go with it."""
    if not all(torch.isfinite(member.W).all() for member in members):
        raise NumericalError("a weight matrix contains NaN or infinity: the model is damaged.")
    if _alike(members):
        return members[0].S, [1.0] * len(members)
    grams = [_gram(member) for member in members]
    traces = [gram.trace().item() for gram in grams]
    mean = torch.stack([gram / trace for gram, trace in zip(grams, traces, strict=True)]).mean(0)
    return cholesky_whitening(mean), [(trace * len(traces) / sum(traces)) ** 0.5 for trace in traces]


def _gram(member: Weighted) -> Tensor:
    assert isinstance(member.S, CholeskyWhitening)
    return member.S.moment


def _left_product(members: Sequence[Weighted], S: Whitening, scales: Sequence[float]) -> Tensor:
    total = torch.zeros(members[0].W.shape[0], members[0].W.shape[0], dtype=torch.float64)
    for member, scale in zip(members, scales, strict=True):
        right = member.W if member.H is None else member.W @ member.H
        total += scale**2 * (right @ member.W.T)
    return S.apply(S.apply(total).T)


def _right_product(
    members: Sequence[Weighted], S: Whitening, scales: Sequence[float]
) -> tuple[Tensor, list[Tensor | None]]:
    """Return M^T M for M = S [s_1 W_1 R_1 ...], and the R_i."""
    roots = [None if member.H is None else positive_cholesky(member.H)[0] for member in members]
    M = torch.cat(
        [
            S.apply(member.W if root is None else member.W @ root) * scale
            for member, root, scale in zip(members, roots, scales, strict=True)
        ],
        dim=1,
    )
    return M.T @ M, roots


def _refitted(members: Sequence[Weighted], basis: Tensor, unit: float) -> Truncation:
    """Return the optimal coefficients of every member for every leading part of a basis, with their losses."""
    parts, mixing = [], []
    energy = torch.zeros(basis.shape[1], dtype=torch.float64)
    for member in members:
        GB = _gram(member) @ basis
        L, _ = positive_cholesky(basis.T @ GB)
        part = torch.linalg.solve_triangular(L, GB.T @ member.W, upper=False)
        energy += (part * (part if member.H is None else part @ member.H)).sum(1)
        parts.append(part)
        mixing.append(L)
    return Truncation(basis, unit * _tails(energy), tuple(parts), tuple(mixing))


def _tails(energy: Tensor) -> Tensor:
    """Return what is lost at ranks 0 to K: the sums of the last energies."""
    return torch.cat([energy.flip(0).cumsum(0).flip(0), energy.new_zeros(1)])


def losses_under(members: Sequence[Weighted], found: Truncation) -> Tensor:
    """Return what given factors lose, at ranks 0 to K, under another weighting than the one they were made with.

    Args:
        members: The matrices with the weighting to measure in.
        found: Factors with nested coefficients (one weighting S for all members).
    """
    K = found.basis.shape[1]
    change = torch.zeros(K, dtype=torch.float64)
    total = 0.0
    for member, C in zip(members, found.parts, strict=True):
        target = member.S.apply(member.W)
        X = member.S.apply(found.basis)
        weighted = target if member.H is None else target @ member.H
        total += (target * weighted).sum().item()
        CH = C if member.H is None else C @ member.H
        inner = ((X.T @ weighted) * C).sum(1).cumsum(0)
        squares = ((X.T @ X) * (CH @ C.T)).cumsum(0).cumsum(1).diagonal()
        change += squares - 2 * inner
    return torch.cat([change.new_zeros(1), change]) + total
