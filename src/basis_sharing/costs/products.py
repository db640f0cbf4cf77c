"""The measured operations of a projection: one product with a weight, and the rest of a pivoted factorized one."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from basis_sharing.costs.stopwatch import Action, Measured, Reference, measure
from basis_sharing.run.progress import Progress, ProgressCallback
from basis_sharing.runtime.factorized_basis_sharing import FactorizedLinear
from basis_sharing.runtime.format_basis_sharing import Grid
from basis_sharing.runtime.rounded_basis_sharing import RoundedLinear

_CACHE_FILE = Path("/sys/devices/system/cpu/cpu0/cache/index3/size")
_USUAL_CACHE = 32 * 2**20
_TIMES_THE_CACHE = 3
_MOST_MODULES = 48
_REFERENCE = (512, 512)
_NOISE = 2**20  # different numbers in the weights, repeated


@dataclass(frozen=True)
class Operation:
    """An operation on the features of some tokens.

    Attributes:
        rows: Number of tokens.
        d_in: Number of input features.
        d_out: Number of output features; 0: the rest of a pivoted factorized projection with ``d_in`` inputs, that is
            adding the pivots, and calling its modules.
        orders: Whether this rest includes putting the inputs in order.
        grid: What the weight of a product is rounded to; None: it is not.
    """

    rows: int
    d_in: int
    d_out: int = 0
    orders: bool = False
    grid: Grid | None = None

    @property
    def key(self) -> str:
        """Name of the operation in a file of times."""
        if self.d_out:
            return f"{self.rows} x {self.d_in} -> {self.d_out}" + (f" in {self.grid}" if self.grid else "")
        return f"{self.rows} x {self.d_in}: rest" + (", in order" if self.orders else "")

    @property
    def halves(self) -> tuple["Operation", "Operation"]:
        """The products of the factorized projection on which the rest is measured."""
        rank = max(1, self.d_in // 2)
        return Operation(self.rows, self.d_in - rank, rank), Operation(self.rows, rank, rank)


def measured_operations(
    operations: Iterable[Operation],
    device: torch.device,
    dtype: torch.dtype,
    working_set: int,
    progress: ProgressCallback,
    known: Mapping[Operation, float] | None = None,
    *,
    thorough: bool = False,
) -> dict[Operation, Measured]:
    """Return the time of operations on a device, with weights that are read in turns, as those of a model are.

    References (:func:`reference_of`) that are not known are measured first, and returned as well.

    Args:
        operations: The operations.
        device: The device.
        dtype: Dtype of features and weights.
        working_set: Bytes of the weights that are read in turns.
        progress: Receives one event per operation and round.
        known: The time of references that have been measured before.
        thorough: Whether every operation is measured in many rounds.
    """
    standards = dict(known or {})
    wanted = list(dict.fromkeys(operations))
    products = dict.fromkeys(product for one in wanted for product in ((one,) if one.d_out else one.halves))
    largest = max(_REFERENCE[0] * _REFERENCE[1], *(product.d_in * product.d_out for product in products))
    pool = _Pool(device, dtype, max(working_set // dtype.itemsize, 2 * largest))
    actions: dict[tuple[Operation, bool], Action] = {}
    for product in products:
        actions[product, True] = _product(product, pool)
    for one in wanted:
        if not one.d_out:
            actions[one, False] = _factorized(one, pool)
    own = {one: _product(one, pool) for one in dict.fromkeys(reference_of(one.rows) for one in wanted)}
    first = measure({one: action for one, action in own.items() if one not in standards}, device)
    standards |= {one: time.seconds for one, time in first.items()}
    references = {one: Reference(action, standards[one]) for one, action in own.items()}
    done, total = 0, 3 * len(actions)

    def ran(left: int) -> None:
        nonlocal done
        done += 1
        progress(Progress("timing products", done, max(total, done + left), "runs"))

    beside = {key: references[reference_of(key[0].rows)] for key in actions}
    found = measure(actions, device, ran, beside, thorough=thorough)
    times = first | {one: found[one, True] for one in wanted if one.d_out and one not in first}
    for one in wanted:
        if not one.d_out:
            times[one] = _rest(found[one, False], [found[half, True] for half in one.halves])
    return times


def reference_of(rows: int) -> Operation:
    """Return the product in whose time operations with so many rows are measured."""
    return Operation(rows, *_REFERENCE)


def reference_product(
    rows: int, device: torch.device, dtype: torch.dtype, working_set: int, seconds: float
) -> Reference:
    """Return the reference of operations with so many rows, which is taken to last ``seconds``."""
    pool = _Pool(device, dtype, max(working_set // dtype.itemsize, 2 * _REFERENCE[0] * _REFERENCE[1]))
    return Reference(_product(reference_of(rows), pool), seconds)


def _rest(whole: Measured, products: list[Measured]) -> Measured:
    """Return what a factorized projection takes beyond its products."""
    seconds = max(0.0, whole.seconds - sum(product.seconds for product in products))
    steady = whole.steady and all(product.steady for product in products)
    return Measured(seconds, whole.spread, steady, whole.thorough)


class _Pool:
    """Numbers from which weights are cut.

    Args:
        device: The device.
        dtype: Dtype of the numbers.
        count: How many there are at least.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype, count: int) -> None:
        noise = torch.randn(min(count, _NOISE), generator=torch.Generator().manual_seed(0)).to(device, dtype)
        self._numbers = noise.repeat(-(-count // len(noise)))
        self.like = noise

    def weights(self, d_out: int, d_in: int) -> list[Tensor]:
        """Return weights of a shape that do not overlap."""
        size = d_in * d_out
        count = len(self._numbers) // size
        return [self._numbers[place * size :][:size].view(d_out, d_in) for place in range(min(count, 512))]

    def words(self, d_out: int, words: int) -> list[Tensor]:
        """Return packed weights of a shape that do not overlap, int32."""
        whole = self._numbers[: len(self._numbers) // 2 * 2].view(torch.int32)
        size = d_out * words
        return [whole[at * size :][:size].view(d_out, words) for at in range(min(len(whole) // size, 512))]

    def features(self, rows: int, width: int) -> Tensor:
        """Return features of some tokens, shape ``[rows, width]``."""
        return self.like.repeat(-(-rows * width // len(self.like)))[: rows * width].view(rows, width)


def beyond_caches(device: torch.device) -> int:
    """Return the bytes of weights that are read in turns from the memory of a device, and not from its caches."""
    return _TIMES_THE_CACHE * _cache_bytes(device)


def _cache_bytes(device: torch.device) -> int:
    """Return the bytes of the last cache before the memory of a device."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).L2_cache_size)
    if _CACHE_FILE.is_file():
        text = _CACHE_FILE.read_text(encoding="ascii").strip()
        if text.endswith("K") and text[:-1].isdigit():
            return int(text[:-1]) * 1024
    return _USUAL_CACHE


def _product(product: Operation, pool: _Pool) -> Action:
    x = pool.features(product.rows, product.d_in)
    if product.grid is not None:
        layers = cycle(list(_rounded_layers(product, product.grid, pool)))
        return lambda: next(layers)(x)
    weights = cycle(pool.weights(product.d_out, product.d_in))
    return lambda: linear(x, next(weights))


def _rounded_layers(product: Operation, grid: Grid, pool: _Pool) -> Iterator[RoundedLinear]:
    """Yield layers whose weights are packed in few bits; they have scales and zero points in common."""
    scale = torch.rand(product.d_out, grid.groups(product.d_in)).to(pool.like)
    for number, packed in enumerate(pool.words(product.d_out, grid.words(product.d_in))):
        if number == _MOST_MODULES:
            return
        layer = RoundedLinear(product.d_in, product.d_out, grid, device="meta")
        layer.packed = nn.Parameter(packed, requires_grad=False)
        layer.scales = nn.Parameter(scale, requires_grad=False)
        if not grid.symmetric:
            zero = pool.words(grid.words(product.d_out), grid.groups(product.d_in))[0]
            layer.zero_points = nn.Parameter(zero, requires_grad=False)
        yield layer


def _factorized(rest: Operation, pool: _Pool) -> Action:
    x, modules = pool.features(rest.rows, rest.d_in), cycle(list(_modules(rest, pool)))
    return lambda: next(modules)(x)


def _modules(rest: Operation, pool: _Pool) -> Iterator[Callable[[Tensor], Tensor]]:
    """Yield factorized projections whose pivots are the first half of their inputs, or any half of them."""
    basis, coefficients = rest.halves
    shuffled = torch.randperm(rest.d_in, generator=torch.Generator().manual_seed(0)).int()
    order = shuffled.to(pool.like.device) if rest.orders else None
    both = zip(
        pool.weights(basis.d_out, basis.d_in),
        reversed(pool.weights(coefficients.d_out, coefficients.d_in)),
        strict=False,
    )
    for number, (first, second) in enumerate(both):
        if number == _MOST_MODULES:
            return
        module = FactorizedLinear(rest.d_in, basis.d_out, coefficients.d_out, False, pivoted=True, device="meta")
        module.basis.weight = nn.Parameter(first, requires_grad=False)
        module.coeff.weight = nn.Parameter(second, requires_grad=False)
        module.order = order
        yield module
