"""Multiplications per token; a shared basis counts once for each input that is multiplied by it."""

from typing import Any

from basis_sharing.costs.base import Cost, Priced, Scope, inputs_of, register, shapes_of
from basis_sharing.models.family import Decoder


@register
class Multiplications(Cost):
    """Multiplications per token, limited by ``max_flops`` (a multiplication with its addition is two operations)."""

    name = "multiplications"
    limit = "max_flops"
    unit = 2

    def of(self, scope: Scope, option: Priced) -> Any:
        """Return the multiplications of an option for one token."""
        products = option.products(shapes_of(scope), inputs_of(scope))
        return sum(product.d_in * product.d_out * product.times for product in products)

    def dense(self, scope: Scope) -> int:
        """Return the multiplications of the dense weights."""
        products = (product for part in scope for product in part.products)
        return sum(product.d_in * product.d_out * product.times for product in products)

    def outside(self, model: Any, decoder: Decoder) -> float:
        """Return the multiplications of the output head."""
        head = model.get_output_embeddings()
        return 0 if head is None else int(head.weight.numel())
