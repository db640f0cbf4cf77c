"""MLX, by mlx-lm: on Apple silicon its GPU, elsewhere the CPU."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from basis_sharing.engines.base import Decoder, register

if TYPE_CHECKING:
    from numpy.typing import NDArray


class MlxLm:
    """mlx-lm."""

    name = "mlx"
    title = "mlx-lm"
    package = "mlx-lm"
    module = "mlx_lm"
    extra = "mlx"
    largest_batch: int | None = None

    def start(self, folder: Path, threads: int) -> Decoder:
        """Load the folder; MLX chooses its threads itself."""
        from mlx_lm.utils import load_model

        return _Model(load_model(folder, trust_remote_code=True)[0])


register(MlxLm())


class _Model:
    """A model with mlx-lm's cache."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.restart()

    def restart(self) -> None:
        """Empty the cache."""
        from mlx_lm.models.cache import make_prompt_cache

        self._cache = make_prompt_cache(self._model)

    def step(self, ids: "NDArray[Any]") -> "NDArray[Any]":
        """Read tokens after those in the cache; see :class:`Decoder`."""
        import mlx.core as mx
        import numpy as np

        return np.array(self._model(mx.array(ids), cache=self._cache)[:, -1].astype(mx.float32))
