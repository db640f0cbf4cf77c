"""``inspect``: the parts of a dense model, or the result of a compression."""

from pathlib import Path

from basis_sharing.errors import RecipeError
from basis_sharing.exports.base import EXPORTS, Stored
from basis_sharing.exports.runtimes.sizes import export_sizes
from basis_sharing.exports.runtimes.traced import RuntimeExport
from basis_sharing.models.decoder import describe
from basis_sharing.models.sizes import role_table
from basis_sharing.models.source import load_skeleton, refuse_compressed, resolve
from basis_sharing.results.compression import RESULT_FILE, CompressionResult
from basis_sharing.results.inspection import Inspection
from basis_sharing.run.machine import parsed_size


def inspect(
    model: str | Path,
    *,
    runs_on: str | None = None,
    memory: int | str | None = None,
    runtime: str | None = None,
) -> Inspection | CompressionResult:
    """Return the parts of a model: how much memory they take, which can be compressed, and where to start.

    Only configurations are read, no weights.

    Args:
        model: A model folder, a GGUF file, or a hub id.
        runs_on: ``"edge"``: say what the model needs in the runtimes that :func:`export` writes for.
        memory: With it, the memory for weights, e.g. ``"200MiB"``: say how much has to be removed to fit.
        runtime: With it, one of them, e.g. ``"onnx"``; None: all.

    Returns:
        Family and table of parts of a dense model; for a folder that ``compress`` wrote, its compression result.

    Raises:
        RecipeError: A setting is wrong, or needs another one.
        ModelError: The model cannot be read, has nothing that can be compressed, or is quantized.
        ResultError: The result in a compressed folder is damaged or too new.

    Example:
        >>> inspection = basis_sharing.inspect("./llama")
        >>> print(inspection.family, inspection.start_with, sum(row.bytes for row in inspection.rows))
    """
    forms, size = _forms(runs_on, memory, runtime)
    source = resolve(model)
    if source.path is not None and (source.path / RESULT_FILE).is_file():
        if forms:
            raise RecipeError(f"--for edge takes an original, and {model} is compressed: its exports say their sizes.")
        return CompressionResult.read(source.path / RESULT_FILE)
    refuse_compressed(source)
    skeleton = load_skeleton(source)
    decoder = describe(skeleton)
    found = Inspection.of(str(model), decoder.family.name, tuple(role_table(skeleton, decoder)))
    return found.model_copy(update={"exports": export_sizes(found.rows, forms, size), "memory": size})


def _forms(
    runs_on: str | None, memory: int | str | None, runtime: str | None
) -> tuple[list[tuple[str, str, Stored]], int | None]:
    """Return the exports to speak of, with the forms of their weights, and the bytes of a memory.

    Raises:
        RecipeError: A setting is wrong, or needs another one.
    """
    if runs_on is None:
        for flag, value in (("--memory", memory), ("--runtime", runtime)):
            if value is not None:
                raise RecipeError(f"{flag} is about exports: add --for edge.")
        return [], None
    if runs_on != "edge":
        raise RecipeError(f"--for {runs_on}: the only one is edge.")
    exports = {name: export for name, export in sorted(EXPORTS.items()) if isinstance(export, RuntimeExport)}
    if runtime is not None and runtime not in exports:
        raise RecipeError(f"unknown runtime {runtime!r}: choose from {', '.join(exports)}.")
    chosen = [export for name, export in exports.items() if runtime in (None, name)]
    forms = [(export.name, weights, stored) for export in chosen for weights, stored in export.stored.items()]
    return forms, None if memory is None else parsed_size(memory)
