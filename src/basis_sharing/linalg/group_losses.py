"""Losses of groups at every rank, without factors, from products that the groups of a search have in common.

The losses of a group depend on its members only through G_i = S_i^T S_i and Q_i = W_i H_i W_i^T, of order ``d_in``. If
the group has fewer outputs than inputs, its basis lies in the span of Z = [W_1 ... W_n], and Z^T G_i Z and the H_i say
the same in fewer numbers. These products are kept from one group to the next, so that a group costs a decomposition of
the smaller order, whatever the widths of its projections.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from basis_sharing.errors import NumericalError
from basis_sharing.linalg.truncation import Member, tails
from basis_sharing.linalg.whitening import positive_cholesky

_NOTHING = 1e-12  # relative energy of a direction that is taken for rounding error


@dataclass(frozen=True)
class _Input:
    """The members of a group that read one input, in coordinates in which a basis has n rows.

    Attributes:
        members: Their number.
        G: Weighting of the input side, shape ``[n, n]``.
        Q: Sum of W H W^T over the members, shape ``[n, n]``.
        trace: Trace of G in the coordinates of the input.
        narrow: Whether the coordinates are those of the span of the weights, where Q is positive definite; else they
            are those of the input, where G is.
    """

    members: int
    G: Tensor
    Q: Tensor
    trace: float
    narrow: bool


class GroupLosses:
    """Computes the losses of groups, and keeps the products of their members for the next group.

    Args:
        most_bytes: Maximum size of the kept products, in bytes; those of the latest group are kept in any case.
        products: Dtype in which the products of weights and weightings are computed. fp32 suffices for losses to five
            digits; decompositions are in fp64 in any case.
    """

    def __init__(self, most_bytes: int = 0, products: torch.dtype = torch.float64) -> None:
        self._most_bytes, self._products = most_bytes, products
        self._kept: dict[object, Tensor] = {}
        self._used: set[object] = set()
        self._left: dict[object, Tensor] = {}

    def measured(self, members: Sequence[Member]) -> Tensor:
        """Return :attr:`~basis_sharing.linalg.truncation.Truncation.losses` of a group."""
        if len({member.input_key for member in members}) == 1:
            return self._of_one_input(members)
        inputs = self._inputs(members)
        energy, basis = _common_basis(inputs)
        real = int((energy > _NOTHING * energy[0]).sum())
        basis, kept = basis[:, :real], torch.zeros_like(energy)
        for one in inputs:
            GB = one.G.double() @ basis
            L, _ = positive_cholesky(basis.T @ GB)
            projected = torch.linalg.solve_triangular(L, GB.T, upper=False)
            kept[:real] += ((projected @ one.Q.double()) * projected).sum(1).clamp_min(0)
        return tails(kept).cpu()

    def _of_one_input(self, members: Sequence[Member]) -> Tensor:
        """Return the losses of a group with one input; what its members contribute is kept as long as that is read."""
        source = members[0].input_key
        if ("S", source) not in self._left:
            self._left.clear()
        [one] = self._inputs(members)
        if one.narrow:
            R = positive_cholesky(one.Q.double())[0]
            return tails(_falling(torch.linalg.eigvalsh(R.T @ one.G.double() @ R))).cpu()
        if not self._left:
            self._left["S", source] = positive_cholesky(one.G)[0].T
        S = self._left["S", source]
        for member in members:
            if member.key not in self._left:
                self._left[member.key] = S @ self._outer(member).double() @ S.T
        total = functools.reduce(torch.add, (self._left[member.key] for member in members))
        return tails(_falling(torch.linalg.eigvalsh(total))).cpu()

    def _inputs(self, members: Sequence[Member]) -> list[_Input]:
        by_input: dict[object, list[Member]] = {}
        for member in members:
            by_input.setdefault(member.input_key, []).append(member)
        self._used.clear()
        narrow = sum(member.shape[1] for member in members) < members[0].shape[0]
        found = [self._narrow(own, members) if narrow else self._wide(own) for own in by_input.values()]
        self._forget()
        return found

    def _wide(self, own: Sequence[Member]) -> _Input:
        """Return the members that read one input, with n = ``d_in``."""
        G = self._keep(("G", own[0].input_key), lambda: own[0].G)
        outer = [self._outer(member) for member in own]
        Q = outer[0] if len(outer) == 1 else torch.stack(outer).sum(0)
        return _Input(len(own), G, Q, G.trace().item(), narrow=False)

    def _outer(self, member: Member) -> Tensor:
        """Return W H W^T, shape ``[d_in, d_in]``."""

        def product() -> Tensor:
            W, H = self._weight(member), member.H
            return (W if H is None else W @ H.to(W)) @ W.T

        return self._keep(("Q", member.key), product)

    def _narrow(self, own: Sequence[Member], members: Sequence[Member]) -> _Input:
        """Return the members that read one input, with n outputs: in the span of the weights of all members."""
        source = own[0].input_key
        known = {(a.key, b.key): self._kept.get((source, a.key, b.key)) for a in members for b in members}
        trace = self._keep(("trace", source), lambda: own[0].G.trace())
        if any(product is None for product in known.values()):
            G = own[0].G.to(self._products)
            for b in sorted(members, key=lambda b: known[b.key, b.key] is not None):
                missing = [a for a in members if known[a.key, b.key] is None]
                if missing:
                    GW = G @ self._weight(b)
                    for a in missing:
                        known[a.key, b.key] = product = self._weight(a).T @ GW
                        known[b.key, a.key] = product.T
        pairs = {names: self._keep((source, *names), lambda p=p: p) for names, p in known.items()}  # type: ignore[misc]
        ZGZ = torch.cat([torch.cat([pairs[a.key, b.key] for b in members], 1) for a in members])
        Q, stop = torch.zeros_like(ZGZ, dtype=torch.float64), 0
        for member in members:
            start, stop = stop, stop + member.shape[1]
            if member.input_key == source:
                H = member.H
                Q[start:stop, start:stop] = torch.eye(stop - start) if H is None else H
        return _Input(len(own), ZGZ, Q, trace.item(), narrow=True)

    def _weight(self, member: Member) -> Tensor:
        W = member.W.to(self._products)
        if not torch.isfinite(W).all():
            raise NumericalError("a weight matrix contains NaN or infinity: the model is damaged.")
        return W

    def _keep(self, key: object, compute: Callable[[], Tensor]) -> Tensor:
        """Return a product that is kept, or else compute and keep it."""
        self._used.add(key)
        product = self._kept.pop(key, None)
        self._kept[key] = product = compute() if product is None else product
        return product

    def _forget(self) -> None:
        """Drop the products that were not used for longest, until the rest has at most its size."""
        size = sum(product.nbytes for product in self._kept.values())
        for key in [key for key in self._kept if key not in self._used]:
            if size <= self._most_bytes:
                break
            size -= self._kept.pop(key).nbytes


def losses(members: Sequence[Member]) -> Tensor:
    """Return :attr:`~basis_sharing.linalg.truncation.Truncation.losses` of a group, without computing factors."""
    return GroupLosses().measured(members)


def _falling(energy: Tensor) -> Tensor:
    """Return the eigenvalues of a positive semidefinite matrix in falling order."""
    return energy.flip(0).clamp_min(0)


def _common_basis(inputs: Sequence[_Input]) -> tuple[Tensor, Tensor]:
    """Return the energies of a group under the mean of its inputs' weightings, and the basis that belongs to them.

    Each G is divided by its trace in the mean, and each Q is scaled by it; see
    :func:`~basis_sharing.linalg.truncation.truncate`.
    """
    count = sum(one.members for one in inputs)
    total = sum(one.members * one.trace for one in inputs)
    G, Q = (torch.zeros_like(inputs[0].G, dtype=torch.float64) for _ in range(2))
    for one in inputs:
        G.add_(one.G, alpha=one.members / (one.trace * count))
        Q.add_(one.Q, alpha=one.trace * count / total)
    if inputs[0].narrow:
        R = positive_cholesky(Q)[0]
        energy, vectors = torch.linalg.eigh(R.T @ G @ R)
        return _falling(energy), (R @ vectors).flip(1)
    S = positive_cholesky(G)[0].T
    energy, vectors = torch.linalg.eigh(S @ Q @ S.T)
    return _falling(energy), torch.linalg.solve_triangular(S, vectors.flip(1), upper=True)
