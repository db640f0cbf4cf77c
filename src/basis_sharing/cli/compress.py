"""``basis-sharing compress``."""

from pathlib import Path
from typing import Annotated, Any

import typer

from basis_sharing.cli import options
from basis_sharing.cli.options import option
from basis_sharing.errors import MemoryBudgetError


def compress(
    model: Annotated[str, typer.Argument(help="A model folder, a .gguf file, or a hub id.", metavar="MODEL")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the compressed model.", metavar="DIR")],
    ratio: options.Ratio = None,
    max_parameters: options.MaxParameters = None,
    max_bytes: options.MaxBytes = None,
    max_flops: options.MaxFlops = None,
    max_perplexity_increase: options.MaxPerplexityIncrease = None,
    plan: Annotated[
        Path | None,
        typer.Option(
            help="Execute this plan, from `basis-sharing plan`, also one edited by hand.",
            metavar="FILE",
            show_default=False,
            rich_help_panel="Target (one of)",
        ),
    ] = None,
    no_gradients: options.NoGradients = False,
    no_sharing: options.NoSharing = False,
    no_joint_roles: options.NoJointRoles = False,
    rank_multiple: options.RankMultiple = None,
    roles: options.Roles = None,
    method: options.Method = None,
    calibration: options.Calibration = None,
    windows: options.Windows = None,
    length: options.Length = None,
    seed: options.Seed = None,
    group_size: Annotated[
        int | None, option("Layers that share a basis", "group_size", "N", "2 for basis-sharing, else 1")
    ] = None,
    share: Annotated[
        str | None,
        option(
            "Roles that share, e.g. q,gate,up, or a family whose table is used, e.g. mistral",
            "share",
            "ROLES",
            "the table of the model's family",
        ),
    ] = None,
    form: options.FormOption = None,
    refit: Annotated[
        str | None,
        option(
            "Refit the coefficients on the compressed model: auto (as the method prescribes), anchored (as method auto "
            "does: block by block towards the original's states, where it helps), always (as basis-sharing does from "
            "ratio 0.4 on), never",
            "refit",
            "WHEN",
        ),
    ] = None,
    refine: options.Refine = None,
    dtype: options.Dtype = None,
    calibration_dtype: options.CalibrationDtype = None,
    evaluate: Annotated[
        list[str] | None,
        option("Measure perplexity before and after on this text; may be repeated", "evaluate", "TEXT", "none"),
    ] = None,
    evaluation_windows: options.EvaluationWindows = None,
    recipe: options.RecipeFile = None,
    work: options.Work = None,
    device: options.Device = None,
    max_memory: options.MaxMemory = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a model folder that exists.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what the run will need, time, memory and disk, and stop.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")] = False,
) -> None:
    """Compress a model and write it as a folder that transformers loads.

    Takes 20 % away from a model, calibrated on Python's own documentation, and measures what it costs:

        basis-sharing compress ./llama -o ./llama-20 --ratio 0.2 --evaluate wikitext2:wiki.test.raw

    Several processes share the work:

        torchrun --nproc-per-node 2 -m basis_sharing compress ./llama -o ./llama-20 --ratio 0.2
    """
    settings = options.settings_from(
        recipe,
        ratio=ratio,
        max_parameters=max_parameters,
        max_bytes=max_bytes,
        max_flops=max_flops,
        max_perplexity_increase=max_perplexity_increase,
        plan=plan,
        no_gradients=no_gradients,
        no_sharing=no_sharing,
        no_joint_roles=no_joint_roles,
        rank_multiple=rank_multiple,
        roles=roles,
        method=method,
        calibration=calibration,
        windows=windows,
        length=length,
        seed=seed,
        group_size=group_size,
        share=share,
        form=form,
        refit=refit,
        refine=refine,
        dtype=dtype,
        calibration_dtype=calibration_dtype,
        evaluate=tuple(evaluate) if evaluate else None,
        evaluation_windows=evaluation_windows,
    )

    from basis_sharing.cli.console import out, progress_bars
    from basis_sharing.cli.interrupts import resumable
    from basis_sharing.reports.tables.compression import compression_summary
    from basis_sharing.reports.terminal import printable
    from basis_sharing.run.processes import joined

    if dry_run:
        with joined() as ranks:
            if ranks.first:
                _tell_needs(model, output, device, max_memory, settings, as_json=as_json)
        return
    from basis_sharing.verbs.compress import compress as run

    with joined() as ranks, resumable(output, work), progress_bars() as progress:
        _, result = run(
            model,
            output=output,
            overwrite=overwrite,
            work=work,
            device=device,
            max_memory=max_memory,
            progress=progress,
            **settings,
        )
    if not ranks.first:
        return
    if as_json:
        print(result.model_dump_json(indent=2))
        return
    out.print(printable(*compression_summary(result)))
    out.print(
        f"\n  written to {output}; load it with\n"
        f"  import basis_sharing; AutoModelForCausalLM.from_pretrained({str(output)!r})\n",
        highlight=False,
    )


def _tell_needs(
    model: str, output: Path, device: str | None, max_memory: str | None, settings: dict[str, Any], *, as_json: bool
) -> None:
    from basis_sharing.cli.console import out
    from basis_sharing.reports.tables.estimate import estimate_table
    from basis_sharing.reports.terminal import printable
    from basis_sharing.verbs.estimate import estimate

    found = estimate(model, device=device, max_memory=max_memory, **settings)
    if as_json:
        print(found.model_dump_json(indent=2))
    else:
        out.print(printable(estimate_table(found, output)))
    if found.least_memory > found.memory:
        raise MemoryBudgetError(found.refusal)
