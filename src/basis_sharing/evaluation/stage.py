"""The stage of a run that measures perplexity."""

from collections.abc import Iterable, Sequence

from basis_sharing.calibration.windows import EvaluationText
from basis_sharing.evaluation.perplexity import measure, prepare_text
from basis_sharing.recipe.evaluation import Evaluation
from basis_sharing.results.measures import Perplexity
from basis_sharing.run.run import Run
from basis_sharing.run.stages import Needs, Shapes

_WINDOWS = 64  # assumed in estimates if all windows of a text are used


class Evaluate:
    """Measure the perplexity of the model on every text of a recipe.

    Args:
        evaluation: The texts.
        length: Tokens per window; None: 2048, or the model's limit.
        name: Name of the stage in progress events.

    Attributes:
        texts: The texts, once they are prepared by :func:`prepared_texts`.
        perplexities: Perplexity on every text.
    """

    texts: Sequence[EvaluationText] = ()
    perplexities: tuple[Perplexity, ...] = ()

    def __init__(self, evaluation: Evaluation, length: int | None, name: str) -> None:
        self._evaluation, self._length, self._name = evaluation, length, name

    def needs(self, shapes: Shapes) -> Iterable[Needs]:
        """Yield the needs of a forward pass over the texts."""
        if not self._evaluation.evaluate:
            return
        length = self._length or shapes.length or 2048
        tokens = (self._evaluation.evaluation_windows or _WINDOWS) * length * len(self._evaluation.evaluate)
        operations = shapes.forward_over(tokens, length) + shapes.head_over(tokens)
        logits = length * shapes.dtype.itemsize * shapes.vocabulary
        yield Needs(self._name, shapes.seconds(operations), logits + shapes.forward_memory(length))

    def run(self, run: Run) -> None:
        """Measure the perplexities, in the first of several processes."""
        perplexities = None
        if run.processes.first:
            perplexities = tuple(
                measure(run.model, text, device=run.machine.device, stage=self._name, progress=run.progress)
                for text in self.texts
            )
        self.perplexities = run.processes.given_by(0, perplexities)


def prepared_texts(evaluation: Evaluation, length: int | None, run: Run) -> list[EvaluationText]:
    """Return the texts of a recipe as token windows.

    Raises:
        CorpusError: A text cannot be read or is shorter than one window.
    """
    return [
        prepare_text(run.model, run.tokenizer, text, windows=evaluation.evaluation_windows, length=length)
        for text in evaluation.evaluate
    ]
