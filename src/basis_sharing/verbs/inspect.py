"""``inspect``: the parts of a dense model, or the result of a compression."""

from pathlib import Path

from basis_sharing.models.decoder import describe
from basis_sharing.models.sizes import role_table
from basis_sharing.models.source import load_skeleton, refuse_compressed, resolve
from basis_sharing.results.compression import RESULT_FILE, CompressionResult
from basis_sharing.results.inspection import Inspection


def inspect(model: str | Path) -> Inspection | CompressionResult:
    """Return the parts of a model: how much memory they take, which can be compressed, and where to start.

    Only configurations are read, no weights.

    Args:
        model: A model folder, a GGUF file, or a hub id.

    Returns:
        Family and table of parts of a dense model; for a folder that ``compress`` wrote, its compression result.

    Raises:
        ModelError: The model cannot be read, has nothing that can be compressed, or is quantized.
        ResultError: The result in a compressed folder is damaged or too new.

    Example:
        >>> inspection = basis_sharing.inspect("./llama")
        >>> print(inspection.family, inspection.start_with, sum(row.bytes for row in inspection.rows))
    """
    source = resolve(model)
    if source.path is not None and (source.path / RESULT_FILE).is_file():
        return CompressionResult.read(source.path / RESULT_FILE)
    refuse_compressed(source)
    skeleton = load_skeleton(source)
    decoder = describe(skeleton)
    return Inspection.of(str(model), decoder.family.name, tuple(role_table(skeleton, decoder)))
