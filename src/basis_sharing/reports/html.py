"""The page of a report: one HTML file without scripts or network access, with embedded pictures."""

from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

import basis_sharing
from basis_sharing.reports.curve_figure import curve_picture, points_of
from basis_sharing.reports.material import Material
from basis_sharing.reports.picture import Picture
from basis_sharing.reports.rank_figure import rank_picture, sharing_picture
from basis_sharing.reports.size_figure import size_picture
from basis_sharing.reports.table import Table, escaped
from basis_sharing.reports.tables.benchmark import against_first, benchmark_tables
from basis_sharing.reports.tables.comparison import comparison_tables
from basis_sharing.reports.tables.compression import compressed_perplexity_table, origin_table, settings_table
from basis_sharing.reports.tables.rollout import rollout_table
from basis_sharing.reports.tables.sizes import size_table
from basis_sharing.reports.tables.tasks import scores_pairs_table
from basis_sharing.reports.tiles import answer, compressed_index, tiles
from basis_sharing.reports.typography import typographic
from basis_sharing.results.words import expectation, how_to_load, how_to_repeat

PICTURES = ("sizes", "perplexity", "ranks", "sharing")
_PIXELS_PER_INCH, _LEAST = 96, 64


@dataclass(frozen=True)
class Image:
    """A picture embedded in the page.

    Attributes:
        alt: Description of the picture.
        source: The picture as a ``data:`` URL.
        width: Preferred width, in CSS pixels.
        least: Smallest width at which its text is legible, in CSS pixels.
    """

    alt: str
    source: str
    width: int
    least: int


def pictures_of(material: Material) -> list[Picture]:
    """Return the pictures of a report, without those for which there is no data."""
    result, layout = material.result, material.layout
    pictures = [size_picture(layout), rank_picture(layout)]
    points = points_of(result, material.perplexities, label=material.name)
    for label, other in material.others:
        measured = tuple(zip(other.perplexity_before, other.perplexity_after, strict=True))
        points += points_of(other, measured, label=label, own=False)
    if points:
        pictures.append(curve_picture(result.before.parameters, points))
    if any(len(group.members) > 1 for group in result.entries):
        pictures.append(sharing_picture(layout, result))
    return pictures


def render(material: Material, pictures: Sequence[Picture], drawn: dict[str, bytes]) -> str:
    """Return the page.

    Args:
        material: The results to report.
        pictures: The pictures of the report.
        drawn: The pictures as SVG, by name.
    """
    result = material.result
    images = {
        picture.name: Image(
            picture.alt,
            "data:image/svg+xml;base64," + b64encode(drawn[picture.name]).decode("ascii"),
            round(picture.width * _PIXELS_PER_INCH),
            round(picture.width * _LEAST),
        )
        for picture in pictures
    }
    installed, bare = how_to_load(result, material.name)
    return (
        _environment()
        .get_template("report.html")
        .render(
            material=material,
            result=result,
            answer=answer(material),
            tiles=tiles(material),
            images=images,
            sizes=size_table(result),
            perplexities=compressed_perplexity_table(result),
            expectation=None if result.prediction is None else expectation(result.prediction),
            comparisons=[(comparison, comparison_tables(comparison)) for comparison in material.comparisons],
            tasks=scores_pairs_table(material.tasks_before, material.tasks_after),
            rollouts=[(rollout.sentence, rollout_table(rollout)) for rollout in material.rollouts],
            benchmarks=[
                table
                for benchmark in material.benchmarks
                for table in benchmark_tables(against_first(benchmark, compressed_index(benchmark, material.name)))
            ],
            installed=installed,
            bare=bare,
            repeat=how_to_repeat(result),
            origin=origin_table(result),
            settings=settings_table(result),
            version=basis_sharing.__version__,
        )
    )


def table_html(table: Table) -> str:
    """Return one table as HTML, as in the page."""
    macros: Any = _environment().get_template("table.html").module
    return str(macros.table(table))


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("basis_sharing.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["typographic"] = typographic
    environment.filters["escaped"] = escaped
    return environment
