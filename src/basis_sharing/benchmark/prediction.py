"""The speed that the plan of a compressed model predicted, kept in its ``config.json``."""

from typing import Any

from pydantic import ValidationError

from basis_sharing.errors import ModelError
from basis_sharing.results.benchmark import PredictedSpeeds


def predicted_speed(name: str, config: Any) -> PredictedSpeeds | None:
    """Return the predicted speed in a model's configuration; None if there is none.

    Raises:
        ModelError: It is damaged.
    """
    quantization = config.to_dict().get("quantization_config") or {}
    found = quantization.get("provenance", {}).get("predicted_speed")
    if found is None:
        return None
    try:
        return PredictedSpeeds.model_validate(found)
    except ValidationError:
        raise ModelError(
            f'config.json of {name} holds a damaged prediction ("predicted_speed"): remove it, or compress again.'
        ) from None
