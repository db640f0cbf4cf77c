"""ExecuTorch with XNNPACK, by its Python runtime, which imports torch."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from basis_sharing.engines.base import Decoder, register
from basis_sharing.errors import ModelError

if TYPE_CHECKING:
    from numpy.typing import NDArray


class ExecuTorch:
    """ExecuTorch."""

    name = "executorch"
    title = "ExecuTorch"
    package = "executorch"
    module = "executorch"
    extra = "executorch"
    largest_batch: int | None = 1

    def start(self, folder: Path, threads: int) -> Decoder:
        """Load ``model.pte``; XNNPACK chooses its threads itself."""
        import executorch.kernels.quantized  # noqa: F401  (registers what looks up tables in 8 bits)
        from executorch.runtime import Runtime

        return _Program(Runtime.get().load_program(folder / "model.pte"))


register(ExecuTorch())


class _Program:
    """A program for one sequence, with a static cache of its own."""

    def __init__(self, program: Any) -> None:
        self._program, self._forward = program, program.load_method("forward")
        self._piece, self._length = (self._constant(f"get_max_{what}_len") for what in ("seq", "context"))
        self._read = 0

    def _constant(self, name: str) -> int:
        return int(self._program.load_method(name).execute([])[0])

    def restart(self) -> None:
        """Begin at the first position of the cache, whose content is overwritten."""
        self._read = 0

    def step(self, ids: "NDArray[Any]") -> "NDArray[Any]":
        """Read tokens after those in the cache; see :class:`Decoder`."""
        import torch

        if self._read + ids.shape[1] > self._length:
            raise ModelError(f"it holds {self._length} tokens, and {self._read + ids.shape[1]} are to be read")
        for piece in torch.from_numpy(ids).split(self._piece, 1):
            places = torch.arange(self._read, self._read + piece.shape[1])
            (logits,) = self._forward.execute([piece.contiguous(), places])
            self._read += piece.shape[1]
        last: NDArray[Any] = logits[:, -1].float().numpy().copy()  # the program writes the next ones to the same place
        return last
