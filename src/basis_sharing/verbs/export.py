"""``export``: write a compressed model in another form, for tools that do not support shared bases."""

from pathlib import Path

from basis_sharing.checkpoint.folder import compressed_source
from basis_sharing.checkpoint.writer import publish, reserve
from basis_sharing.exports.base import EXPORTS
from basis_sharing.run.progress import ProgressCallback, silent


def export(
    folder: str | Path,
    output: str | Path,
    *,
    to: str = "dense",
    overwrite: bool = False,
    progress: ProgressCallback = silent,
) -> Path:
    """Write a compressed model in another form.

    The compressed folder is not changed. An export that fails or is killed leaves no loadable folder behind.

    Args:
        folder: A folder that ``compress`` wrote.
        output: Folder for the export.
        to: Form to write: ``"dense"`` multiplies the factors out to an ordinary model of the original's size.
        overwrite: Whether a model folder at ``output`` may be replaced.
        progress: Receives progress events.

    Returns:
        The folder that was written.

    Raises:
        RecipeError: There is no such form.
        ModelError: The folder holds no compressed model.
        CheckpointError: The folder is inconsistent or too new.
        OutputError: The output cannot be written.

    Example:
        >>> basis_sharing.export("./llama-20", "./llama-20-dense", to="dense")
    """
    form, output = EXPORTS[to], Path(output)
    _, path = compressed_source(folder, "there is nothing to export")
    with reserve(output, overwrite=overwrite, inputs=[path]) as staging:
        form.write(path, staging, progress)
        publish(staging, output)
    return output
