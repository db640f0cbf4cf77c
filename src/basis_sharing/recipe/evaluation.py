"""The evaluation part of a recipe: the texts on which perplexity is measured before and after."""

from typing import Annotated, TypedDict

from pydantic import Field

from basis_sharing.recipe.settings import Option, Settings


class Evaluation(Settings):
    """The texts on which perplexity is measured."""

    evaluate: Annotated[
        tuple[str, ...],
        Option(
            "Measure perplexity before and after on this text; may be repeated",
            metavar="TEXT",
            default="none",
            repeated=True,
        ),
    ] = ()
    evaluation_windows: Annotated[
        int | None, Option("Use only the first windows of each text", metavar="N", default="all")
    ] = Field(default=None, ge=1)


class EvaluationKeywords(TypedDict, total=False):
    """The settings of :class:`Evaluation` as Python keywords."""

    evaluate: tuple[str, ...]
    evaluation_windows: int | None
