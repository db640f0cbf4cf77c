"""``report``: write an HTML page about a compressed model, and its pictures as files."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from basis_sharing.reports.html import PICTURES, pictures_of, render
from basis_sharing.reports.material import gather
from basis_sharing.run.files import check_files, write_file


def report(
    folder: str | Path,
    results: Sequence[str | Path] = (),
    *,
    output: str | Path = "report.html",
    figures: str | Path | None = None,
    overwrite: bool = False,
) -> list[Path]:
    """Write a report about a compressed model as one HTML page without scripts or network access.

    The same input gives the same bytes.

    Args:
        folder: A folder that ``compress`` wrote.
        results: Files that other verbs wrote about it: a comparison, benchmarks, evaluations, a rollout, or the
            ``basis_sharing.json`` of other compressions of the same original, which become points of the curve.
        output: The HTML file.
        figures: Folder for the pictures as SVG and PNG files; None: they are only in the page.
        overwrite: Whether existing files may be replaced.

    Returns:
        The files written, the page first.

    Raises:
        ModelError: The folder's configuration cannot be read.
        OutputError: A file exists, or cannot be written.
        ResultError: The folder is not a compressed one, or a file is damaged, of a kind that a report does not show,
            or about another model.

    Example:
        >>> basis_sharing.report("./llama-20", output="llama-20.html", figures="figures")
    """
    page = Path(output)
    possible = [] if figures is None else [Path(figures) / f"{n}.{kind}" for n in PICTURES for kind in ("svg", "png")]
    check_files([page, *possible], overwrite=overwrite)
    material = gather(Path(folder), [Path(file) for file in results])
    pictures = pictures_of(material)
    drawn = {picture.name: picture.rendered("svg") for picture in pictures}
    files = {page: render(material, pictures, drawn).encode()}
    if figures is not None:
        for picture in pictures:
            files[Path(figures) / f"{picture.name}.svg"] = drawn[picture.name]
            files[Path(figures) / f"{picture.name}.png"] = picture.rendered("png")
    for path, content in files.items():
        write_file(path, partial(_write, content))
    return list(files)


def _write(content: bytes, path: Path) -> None:
    path.write_bytes(content)
