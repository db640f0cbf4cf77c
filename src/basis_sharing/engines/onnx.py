"""ONNX Runtime on the CPU."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from basis_sharing.engines.base import Decoder, register

if TYPE_CHECKING:
    from numpy.typing import NDArray

_PAST, _PRESENT = "past_key_values.", "present."


class OnnxRuntime:
    """ONNX Runtime."""

    name = "onnx"
    title = "ONNX Runtime"
    package = "onnxruntime"
    module = "onnxruntime"
    extra = "onnx"
    largest_batch: int | None = None

    def start(self, folder: Path, threads: int) -> Decoder:
        """Load ``model.onnx``."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        return _Session(
            onnxruntime.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])
        )


register(OnnxRuntime())


class _Session:
    """A graph whose keys and values are inputs and outputs."""

    def __init__(self, session: Any) -> None:
        self._session = session
        inputs = {one.name: one.shape for one in session.get_inputs()}
        self._inputs = set(inputs)
        self._shapes = {name: shape for name, shape in inputs.items() if name.startswith(_PAST)}
        self._outputs = ["logits", *(_PRESENT + name.removeprefix(_PAST) for name in self._shapes)]
        self._past: dict[str, Any] = {}
        self._read = 0

    def restart(self) -> None:
        """Empty the cache."""
        self._past, self._read = {}, 0

    def step(self, ids: "NDArray[Any]") -> "NDArray[Any]":
        """Read tokens after those in the cache; see :class:`Decoder`."""
        import numpy as np
        from onnxruntime import OrtValue

        batch, count = ids.shape
        positions = np.arange(self._read, self._read + count)[None].repeat(batch, 0)
        self._read += count
        mask = np.ones((batch, self._read), np.int64)
        read = {"input_ids": ids.astype(np.int64), "position_ids": positions, "attention_mask": mask}
        past = self._past or {
            name: OrtValue.ortvalue_from_numpy(np.zeros((batch, heads, 0, width), np.float32))
            for name, (_, heads, _, width) in self._shapes.items()
        }
        fed = {name: OrtValue.ortvalue_from_numpy(array) for name, array in read.items() if name in self._inputs}
        logits, *present = self._session.run_with_ort_values(self._outputs, fed | past)
        self._past = dict(zip(self._shapes, present, strict=True))
        last: NDArray[Any] = logits.numpy()[:, -1]
        return last
