"""Time: seconds of the projections in one phase, from measured times of their products."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from basis_sharing.costs.base import Cost, Priced, Scope, inputs_of, shapes_of
from basis_sharing.costs.products import Operation
from basis_sharing.costs.time_table import TimeTable
from basis_sharing.models.family import Compressible, Decoder
from basis_sharing.runtime.format_basis_sharing import Grid

_ROUNDING = 1e-9
_IN_ORDER = ("down", "shared_down")  # roles that read neurons, which are put in order where they are computed
Phase = Literal["prefill", "decode"]


@dataclass(frozen=True)
class Workload:
    """What a model does in one forward pass.

    Attributes:
        phase: Reading a prompt, or decoding one more token per sequence.
        tokens: Tokens of the prompt.
        batch: Sequences that are decoded at once; a prompt is read alone.
    """

    phase: Phase
    tokens: int
    batch: int = 1

    @property
    def rows(self) -> int:
        """Tokens that go through every projection."""
        return self.tokens if self.phase == "prefill" else self.batch

    def __str__(self) -> str:
        if self.phase == "prefill":
            return f"prefill of {self.tokens} tokens"
        return f"decode at batch {self.batch} after {self.tokens} tokens"


class Time(Cost):
    """Seconds of a forward pass, limited by ``min_speedup`` and ``max_latency``.

    It is not registered by a limit, since it needs the table of a machine and the time of the whole model.

    Args:
        table: Measured times.
        workload: The forward pass.
        whole: Seconds of the whole original model.

    Attributes:
        workload: The forward pass.
        original: Seconds of the whole original model.
    """

    name = "time"

    def __init__(self, table: TimeTable, workload: Workload, whole: float = 0.0) -> None:
        super().__init__()
        self._table, self.workload, self.original = table, workload, whole

    @property
    def key(self) -> str:
        """The name, with the workload."""
        return f"{self.name}/{self.workload}"

    def of(self, scope: Scope, option: Priced) -> Any:
        """Return the seconds of an option: its products, and the rest of its pivoted projections."""
        total: Any = 0.0
        for operations, times in self._parts(scope, option):
            seconds = [self._table.seconds(operation) for operation in operations]
            total = total + times * (seconds[0] if len(seconds) == 1 else np.array(seconds))
        return total

    def dense(self, scope: Scope) -> float:
        """Return the seconds of the dense projections."""
        products = (product for part in scope for product in part.products)
        return sum(one.times * self._table.seconds(self._product(one.d_in, one.d_out)) for one in products)

    def share(self, projection: Compressible, scope: Scope, option: Priced) -> float:
        """Return the seconds of one projection of a scope under an option, of which all have the same part by size."""
        sizes = sum(p.d_in + p.d_out for p in scope)
        seconds: float = self.of(scope, option) * (projection.d_in + projection.d_out) / sizes
        return seconds

    def outside(self, model: Any, decoder: Decoder) -> float:
        """Return the seconds of the model outside its compressible projections."""
        return self.original - self.dense(decoder.parts)

    def budget(self, limit: float, model: Any, decoder: Decoder) -> float:
        """Return the seconds of the projections for a limit on the whole model, which its own time does not exceed."""
        return super().budget(limit, model, decoder) + _ROUNDING * self.original

    def needed(self, scope: Scope, options: Iterable[Priced]) -> Iterator[Operation]:
        """Yield the operations whose times the options and the dense projections of a scope need."""
        for product in (product for part in scope for product in part.products):
            yield self._product(product.d_in, product.d_out)
        for option in options:
            for operations, _ in self._parts(scope, option):
                yield from operations

    def measure(self, operations: Iterable[Operation]) -> None:
        """Measure the operations that are not in the table."""
        self._table.measure(operations)

    def _parts(self, scope: Scope, option: Priced) -> Iterator[tuple[list[Operation], int]]:
        """Yield the operations of an option, a list over the options of a sequence, and how often each is done."""
        shapes = shapes_of(scope)
        for product in option.products(shapes, inputs_of(scope)):
            d_in, d_out = np.broadcast_arrays(product.d_in, product.d_out)
            sizes = zip(d_in.ravel().tolist(), d_out.ravel().tolist(), strict=True)
            yield [self._product(*size, product.grid) for size in sizes], product.times
        for tensor in option.stored(shapes):
            if tensor.buffer:  # the order of the inputs, in which every input of the scope is parted
                orders = not all(p.role in _IN_ORDER for p in scope)
                yield [Operation(self.workload.rows, int(tensor.shape[0]), orders=orders)], inputs_of(scope)

    def _product(self, d_in: int, d_out: int, grid: Grid | None = None) -> Operation:
        return Operation(self.workload.rows, d_in, d_out, grid=grid)
