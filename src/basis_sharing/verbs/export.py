"""``export``: write a compressed model in another form, for tools that do not support shared bases."""

from pathlib import Path

from basis_sharing.checkpoint.folder import compressed_source
from basis_sharing.checkpoint.writer import publish, reserve
from basis_sharing.errors import RecipeError
from basis_sharing.exports.base import EXPORTS, Export
from basis_sharing.models.source import resolve
from basis_sharing.run.progress import ProgressCallback, silent


def export(
    folder: str | Path,
    output: str | Path,
    *,
    to: str = "dense",
    weights: str | None = None,
    overwrite: bool = False,
    progress: ProgressCallback = silent,
) -> Path:
    """Write a compressed model in another form.

    Exports to a runtime are run there, in a process of its own, and compared with the model in PyTorch before they get
    their name; ``basis_sharing_export.json`` in the folder says what was found. The model is not changed. An export
    that fails or is killed leaves no loadable folder behind.

    Args:
        folder: A folder that ``compress`` wrote; for ``"onnx"`` and ``"openvino"`` any model, to compare with.
        output: Folder for the export.
        to: Form to write: ``"dense"`` multiplies the factors out to an ordinary model of the original's size,
            ``"compressed-tensors"`` holds rounded weights, ``"onnx"`` and ``"openvino"`` run in those runtimes.
        weights: Form of the weights, e.g. ``"int8"``; None: the first that the form has.
        overwrite: Whether a model folder at ``output`` may be replaced.
        progress: Receives progress events.

    Returns:
        The folder that was written.

    Raises:
        RecipeError: There is no such form, it has no such weights, or a package is missing.
        ModelError: The folder holds no compressed model, or the export computes something else.
        CheckpointError: The folder is inconsistent or too new.
        OutputError: The output cannot be written.

    Example:
        >>> basis_sharing.export("./llama-20", "./llama-20-dense", to="dense")
    """
    form, output = EXPORTS[to], Path(output)
    _check_weights(form, weights)
    path = _model(form, folder)
    with reserve(output, overwrite=overwrite, inputs=[path] if path.exists() else []) as staging:
        form.write(path, staging, weights, progress)
        publish(staging, output)
    return output


def _check_weights(form: Export, weights: str | None) -> None:
    """Make sure that a form has such weights.

    Raises:
        RecipeError: It has not.
    """
    if weights is None or weights in form.weights:
        return
    if not form.weights:
        raise RecipeError(f"--to {form.name} writes weights as they are: leave out --weights.")
    raise RecipeError(f"--to {form.name} has no weights {weights!r}: choose from {', '.join(form.weights)}.")


def _model(form: Export, folder: str | Path) -> Path:
    """Return the model to export: a compressed folder, or anything else that the form takes.

    Raises:
        ModelError: The form takes compressed models only, and it is none.
        CheckpointError: The folder is inconsistent or too new.
    """
    if form.takes_dense:
        resolve(folder)
        return Path(folder)
    return compressed_source(folder, "there is nothing to export")[1]
