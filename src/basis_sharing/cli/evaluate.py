"""``basis-sharing evaluate``."""

from basis_sharing.cli import arguments
from basis_sharing.cli import measuring_arguments as measuring


def evaluate(
    model: measuring.Model,
    text: measuring.Texts = None,
    evaluation_windows: measuring.EvaluationWindows = None,
    windows: measuring.RenamedWindows = None,
    length: measuring.Length = None,
    dtype: measuring.Dtype = "auto",
    device: measuring.Device = None,
    tasks: measuring.Tasks = None,
    task_data: measuring.TaskData = None,
    limit: measuring.TaskLimit = None,
    no_cache: measuring.NoCache = False,
    as_json: arguments.AsJson = False,
) -> None:
    """Measure perplexity and bits per byte of a model, dense or compressed, or its accuracy on zero-shot tasks.

    The text is tokenized once and cut into windows that do not overlap; every token of a window but the first is
    predicted. The same command gives comparable numbers for any two models:

        basis-sharing evaluate ./llama-20 --text wikitext2:wiki.test.raw

        basis-sharing evaluate ./llama-20 --tasks paper,boolq --task-data ./zeroshot
    """
    from basis_sharing.cli.console import out, progress_bars
    from basis_sharing.reports.tables.perplexity import perplexity_table
    from basis_sharing.reports.tables.tasks import scores_table
    from basis_sharing.reports.terminal import printable
    from basis_sharing.verbs.evaluate import evaluate as run

    with progress_bars() as progress:
        result = run(
            model,
            text,
            evaluation_windows=evaluation_windows,
            length=length,
            dtype=dtype,
            device=device,
            tasks=() if tasks is None else tasks,
            task_data=task_data,
            limit=limit,
            cache=not no_cache,
            progress=progress,
        )
    if as_json:
        print(result.model_dump_json(indent=2))
        return
    if result.perplexities:
        out.print(printable(perplexity_table(model, result.perplexities)))
    if result.tasks is not None:
        out.print(printable(scores_table(result.tasks)))
