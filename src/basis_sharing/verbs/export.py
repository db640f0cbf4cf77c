"""Write a compressed model in another form: for tools that know nothing of shared bases."""

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

    The compressed folder is not changed, and an export that fails or is killed leaves no folder behind that loads.

    Args:
        folder: A folder that ``compress`` wrote.
        output: Folder for the export.
        to: Form to write: ``"dense"`` multiplies the factors out and gives an ordinary model of the original's size.
        overwrite: Whether a model folder at ``output`` may be replaced.
        progress: Receives progress events.

    Returns:
        The folder that was written.

    Raises:
        RecipeError: There is no such form.
        ModelError: The folder holds no compressed model.
        CheckpointError: It contradicts itself or is too new.
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
