"""Parameters: the number of stored weights; shared ones count once."""

from typing import Any

from basis_sharing.costs.base import Cost, Priced, Scope, numbers, register, shapes_of
from basis_sharing.models.family import Decoder


@register
class Parameters(Cost):
    """Parameters, limited by ratios and by ``max_parameters``."""

    name = "parameters"
    limit = "max_parameters"

    def of(self, scope: Scope, option: Priced) -> Any:
        """Return the parameters of an option."""
        return sum(
            numbers(tensor) if tensor.parameters is None else tensor.parameters
            for tensor in option.stored(shapes_of(scope))
            if not tensor.buffer
        )

    def dense(self, scope: Scope) -> int:
        """Return the parameters of the dense weights."""
        return sum(p.d_in * p.d_out for p in scope)

    def outside(self, model: Any, decoder: Decoder) -> float:
        """Return the parameters of the model outside the weights of the compressible projections."""
        from basis_sharing.models.sizes import parameter_count  # torch, which reading a plan does not need

        return parameter_count(model) - self.dense(decoder.parts)
