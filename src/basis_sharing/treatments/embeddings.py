"""Embeddings and output head in 8 bits, with one scale per token: no option of a plan, but a setting of its own."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from basis_sharing.errors import ModelError
from basis_sharing.linalg.rounding import nearest, scales_of
from basis_sharing.recipe.rounding import Rounding
from basis_sharing.run.run import Run
from basis_sharing.run.stages import Needs, Shapes
from basis_sharing.runtime.entries_basis_sharing import Embeddings
from basis_sharing.runtime.format_basis_sharing import FormatError, Grid, grid_tensors
from basis_sharing.runtime.rounded_basis_sharing import pack
from basis_sharing.treatments.base import place
from basis_sharing.treatments.rounded import scale_dtype

_ROWS = 8192  # tokens that are rounded at once


class RoundEmbeddings:
    """Round the embeddings and the output head of a model, if the settings say so.

    Args:
        settings: The settings.

    Attributes:
        entries: The entries of what was rounded.
    """

    entries: Sequence[Embeddings]

    def __init__(self, settings: Rounding) -> None:
        self._settings = settings
        self.entries = ()

    def needs(self, shapes: Shapes) -> Iterable[Needs]:
        """Return nothing: it takes seconds, and less memory than it saves."""
        return ()

    def run(self, run: Run) -> None:
        """Replace the modules of the model.

        Raises:
            ModelError: The embeddings of this architecture are of another kind.
        """
        if self._settings.embedding_bits is None:
            return
        self.entries = entries_of(run.model)
        saved = saved_bytes(self._settings, run.model)
        for entry in self.entries:
            round_table(run.model, entry)
        run.notes.append(f"Embeddings and output head are in 8 bits, which saves {saved / 2**20:.1f} MiB.")


def entries_of(model: Any) -> list[Embeddings]:
    """Return an entry for every table outside of the blocks: that of the embeddings, and that of an untied head.

    Raises:
        ModelError: The embeddings are of another kind than these entries can hold.
    """
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    names: dict[int, str] = {id(module): name for name, module in model.named_modules()}
    if not isinstance(table, nn.Embedding) or (head is not None and not isinstance(head, nn.Linear)):
        kind = type(head if isinstance(table, nn.Embedding) else table).__name__
        raise ModelError(f"{kind} of this model cannot be rounded: leave out --embedding-bits.")
    groups: list[list[nn.Module]] = [[table]]
    if head is not None:
        groups = [[table, head]] if head.weight is table.weight else [[table], [head]]
    grid = _grid(table.embedding_dim)
    return [Embeddings.of([names[id(module)] for module in group], grid) for group in groups]


def _grid(width: int) -> Grid:
    return Grid(8, width, symmetric=True)


def saved_bytes(settings: Rounding, model: Any) -> int:
    """Return how many bytes of memory the rounding of a model's tables saves; 0 if the settings leave them."""
    saved = 0
    if settings.embedding_bits is None:
        return saved
    for entry in entries_of(model):
        module = model.get_submodule(entry.owner)
        count, width = module.weight.shape
        itemsize = module.weight.element_size()
        saved += count * (width * itemsize - 4 * _grid(width).words(width) - itemsize)
        saved += sum(buffer.nbytes for buffer in module.buffers())  # a multiplier is part of the new module
    return saved


@torch.no_grad()
def round_table(model: Any, entry: Embeddings) -> None:
    """Round a table, and replace the modules that use it.

    Raises:
        ModelError: A module is of another kind than entries can hold.
    """
    packed, scales = _rounded(model.get_submodule(entry.owner).weight, entry.weight_grid)
    tensors = dict(zip(grid_tensors(f"{entry.owner}.weight", entry.weight_grid), (packed, scales), strict=True))
    try:
        place(model, entry, tensors)
    except FormatError as error:
        raise ModelError(f"{error} Leave out --embedding-bits.") from None


def _rounded(weight: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """Return the packed table and its scales."""
    parts = []
    for rows in weight.detach().split(_ROWS):
        scale, zero = scales_of(rows.float(), grid, stored=scale_dtype(weight.dtype))
        parts.append((pack(nearest(rows.float(), grid, scale, zero).codes, grid), scale.to(weight.dtype)))
    packed, scales = zip(*parts, strict=True)
    return torch.cat(packed), torch.cat(scales)
