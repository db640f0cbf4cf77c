"""OpenVINO on the CPU."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from basis_sharing.engines.base import Decoder, register

if TYPE_CHECKING:
    from numpy.typing import NDArray


class OpenVino:
    """OpenVINO."""

    name = "openvino"
    title = "OpenVINO"
    package = "openvino"
    module = "openvino"
    extra = "openvino"
    largest_batch: int | None = None

    def start(self, folder: Path, threads: int) -> Decoder:
        """Load ``openvino_model.xml``, compiled for one request at a time."""
        import openvino

        core = openvino.Core()
        settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
        return _Request(core.compile_model(folder / "openvino_model.xml", "CPU", settings))


register(OpenVino())


class _Request:
    """A model that keeps keys and values in its state."""

    def __init__(self, compiled: Any) -> None:
        self._request = compiled.create_infer_request()
        self._inputs = {name for port in compiled.inputs for name in port.get_names()}
        self._read = 0

    def restart(self) -> None:
        """Empty the cache."""
        self._request.reset_state()
        self._read = 0

    def step(self, ids: "NDArray[Any]") -> "NDArray[Any]":
        """Read tokens after those in the cache; see :class:`Decoder`."""
        import numpy as np

        batch, count = ids.shape
        positions = np.arange(self._read, self._read + count)[None].repeat(batch, 0)
        self._read += count
        read = {
            "input_ids": ids.astype(np.int64),
            "attention_mask": np.ones((batch, self._read), np.int64),
            "position_ids": positions,
            "beam_idx": np.arange(batch, dtype=np.int32),
        }
        self._request.infer({name: array for name, array in read.items() if name in self._inputs})
        last: NDArray[Any] = self._request.get_tensor("logits").data[:, -1].copy()
        return last
