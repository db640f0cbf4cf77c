"""The file in an exported folder that says what it holds and how it was checked."""

from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from basis_sharing.engines.base import ENGINES, MANIFEST
from basis_sharing.results.export import ExportCheck, ExportResult

if TYPE_CHECKING:
    from basis_sharing.exports.runtimes.traced import RuntimeExport


def write_manifest(staging: Path, form: "RuntimeExport", weights: str, parameters: int, check: ExportCheck) -> None:
    """Write what an exported folder holds.

    Args:
        staging: The folder, with everything else in it.
        form: The export.
        weights: The form of its weights.
        parameters: Parameters of the model, shared ones counted once.
        check: The comparison with the model in PyTorch.
    """
    packages = ("basis-sharing", "torch", "transformers", ENGINES[form.name].package, *form.packages)
    result = ExportResult(
        form=form.name,
        weights=weights,
        parameters=parameters,
        bytes_on_disk=sum(file.stat().st_size for file in staging.iterdir()),
        check=check,
        versions={package: version(package) for package in packages},
    )
    result.write(staging / MANIFEST)
