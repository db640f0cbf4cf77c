"""The page of a report: one HTML file without scripts or network, its pictures inside."""

from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

import basis_sharing
from basis_sharing.reports import measured_parts, parts, rollout_parts
from basis_sharing.reports.curve_figure import curve_picture, points_of
from basis_sharing.reports.material import Material
from basis_sharing.reports.picture import Picture
from basis_sharing.reports.rank_figure import rank_picture, sharing_picture
from basis_sharing.reports.size_figure import size_picture
from basis_sharing.results.benchmark import BenchmarkResult
from basis_sharing.results.comparison import Comparison
from basis_sharing.results.words import how_to_load, how_to_repeat

PICTURES = ("sizes", "perplexity", "ranks", "sharing")
_PIXELS_PER_INCH, _LEAST = 96, 64


@dataclass(frozen=True)
class Image:
    """A picture inside the page.

    Attributes:
        alt: What it shows.
        source: The picture itself, as a ``data:`` address.
        width: Width at which it is read best, in CSS pixels.
        least: Width below which its words get too small, in CSS pixels.
    """

    alt: str
    source: str
    width: int
    least: int


def pictures_of(material: Material) -> list[Picture]:
    """Return the pictures that the material has something to show in."""
    result, layout = material.result, material.layout
    pictures = [size_picture(layout), rank_picture(layout)]
    points = points_of(result, material.perplexities, label=material.name)
    for label, other in material.others:
        measured = tuple(zip(other.perplexity_before, other.perplexity_after, strict=True))
        points += points_of(other, measured, label=label, own=False)
    if points:
        pictures.append(curve_picture(result.before.parameters, points))
    if any(len(group.members) > 1 for group in result.groups):
        pictures.append(sharing_picture(layout, result))
    return pictures


def render(material: Material, pictures: Sequence[Picture], drawn: dict[str, bytes]) -> str:
    """Return the page.

    Args:
        material: What it reports.
        pictures: Its pictures.
        drawn: These as SVG, by name.
    """
    result = material.result
    installed, bare = how_to_load(material.name)
    return (
        _environment()
        .get_template("report.html")
        .render(
            material=material,
            result=result,
            answer=parts.answer(material),
            tiles=[*parts.tiles(material), *measured_parts.measured_tiles(material)],
            images=_images(pictures, drawn),
            sizes=parts.size_table(result),
            perplexities=parts.perplexity_table(result),
            expectation=parts.expectation(result),
            comparisons=[(comparison, _comparison_tables(comparison)) for comparison in material.comparisons],
            tasks=measured_parts.task_table(material),
            rollouts=[(rollout.sentence, rollout_parts.rollout_table(rollout)) for rollout in material.rollouts],
            benchmarks=[table for one in material.benchmarks for table in _benchmark_tables(one, material.name)],
            installed=installed,
            bare=bare,
            repeat=how_to_repeat(result),
            origin=parts.origin_table(result),
            settings=parts.settings_table(result),
            version=basis_sharing.__version__,
        )
    )


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("basis_sharing.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["without_empty_lines"] = measured_parts.without_empty_lines
    environment.filters["without_controls"] = measured_parts.without_controls
    return environment


def _images(pictures: Sequence[Picture], drawn: dict[str, bytes]) -> dict[str, Image]:
    return {
        picture.name: Image(
            picture.alt,
            "data:image/svg+xml;base64," + b64encode(drawn[picture.name]).decode("ascii"),
            round(picture.width * _PIXELS_PER_INCH),
            round(picture.width * _LEAST),
        )
        for picture in pictures
    }


def _comparison_tables(comparison: Comparison) -> list[Any]:
    tables = (
        measured_parts.comparison_table(comparison),
        measured_parts.checks_table(comparison),
        measured_parts.compared_tasks_table(comparison),
        measured_parts.disagreement_table(comparison),
    )
    return [table for table in tables if table is not None]


def _benchmark_tables(benchmark: BenchmarkResult, name: str) -> list[Any]:
    tables = measured_parts.speed_table(benchmark, name), measured_parts.memory_table(benchmark, name)
    return [table for table in tables if table is not None]
