"""The result of an evaluation: perplexity on texts, accuracy on zero-shot tasks."""

from typing import Literal

from basis_sharing.results.base import Result
from basis_sharing.results.measures import Perplexity
from basis_sharing.results.tasks import TaskResults


class EvaluationResult(Result):
    """Perplexities and task scores of one model.

    Attributes:
        model: The model as it was given.
        perplexities: One per text, in the order of the texts; empty if only tasks were scored.
        tasks: Scores on zero-shot tasks; None if none were scored.
        versions: Versions of the software.
    """

    kind: Literal["evaluation"] = "evaluation"
    model: str
    perplexities: tuple[Perplexity, ...]
    tasks: TaskResults | None = None
    versions: dict[str, str]

    @property
    def perplexity(self) -> float:
        """The perplexity on the only text.

        Raises:
            ValueError: There are several, or none.
        """
        if len(self.perplexities) != 1:
            raise ValueError(f"the model was evaluated on {len(self.perplexities)} texts: see perplexities.")
        return self.perplexities[0].perplexity
