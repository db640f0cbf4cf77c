"""Write a compressed model in another form: for tools that know nothing of shared bases."""

from pathlib import Path

from basis_sharing.checkpoint.folder import check_folder
from basis_sharing.checkpoint.writer import publish, reserve
from basis_sharing.errors import ModelError
from basis_sharing.exports.base import find_export
from basis_sharing.models.refusals import is_compressed
from basis_sharing.models.source import load_config, resolve
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
    form = find_export(to)
    source, output = resolve(folder), Path(output)
    if source.kind != "folder" or source.path is None or not is_compressed(load_config(source).to_dict()):
        raise ModelError(f"{folder} is no folder of a model compressed by basis-sharing: there is nothing to export.")
    check_folder(source.path)
    with reserve(output, overwrite=overwrite, inputs=[source.path]) as staging:
        form.write(source.path, staging, progress)
        publish(staging, output)
    return output
