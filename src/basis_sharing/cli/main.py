"""The entry point of the command line: errors are one sentence, with exit code 2."""

import os
import sys
from typing import Annotated, Any

import typer
import typer.core

import basis_sharing
from basis_sharing.cli import (
    bench,
    compare,
    compress,
    evaluate,
    export,
    inspect,
    plan,
    recover,
    report,
    rollout,
    study,
)
from basis_sharing.errors import BasisSharingError, RecipeError

_RENAMED = {
    "densify": "basis-sharing export FOLDER -o OUT --to dense",
    "eval": "basis-sharing evaluate MODEL",
}


class Verbs(typer.core.TyperGroup):
    """The group of verbs, some of which consist of two words."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return name, command and remaining arguments, also for verbs of two words such as ``plan diff``.

        Raises:
            RecipeError: The verb was renamed.
        """
        if args and args[0] in _RENAMED:
            raise RecipeError(f"{args[0]} was renamed: call {_RENAMED[args[0]]} instead.")
        two = " ".join(args[:2])
        if two in self.commands:
            return two, self.commands[two], args[2:]
        return super().resolve_command(ctx, args)


app = typer.Typer(
    name="basis-sharing",
    cls=Verbs,
    help="Make language models smaller: weight matrices of different layers share basis vectors. No fine-tuning.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("compress")(compress.compress)
app.command("plan")(plan.plan)
app.command("plan diff")(plan.diff)
app.command("evaluate")(evaluate.evaluate)
app.command("compare")(compare.compare)
app.command("bench")(bench.bench)
app.command("report")(report.report)
app.command("inspect")(inspect.inspect)
app.command("study")(study.study)
app.command("recover")(recover.recover)
app.command("export")(export.export)
app.command("rollout")(rollout.rollout)


def _version(show: bool) -> None:
    if show:
        print(f"basis-sharing {basis_sharing.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and context.invoked_subcommand != "compress":
        raise RecipeError(f"only compress shares its work among processes: run {context.invoked_subcommand} alone.")


# typer exports only this usage error; its base class covers unknown options, commands and missing values.
_UsageError: Any = typer.BadParameter.__bases__[0]


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0, 1 for a broken limit, 2 for an error of the user, 130 after an interrupt."""
    try:
        code = app(arguments, standalone_mode=False)
    except _UsageError as error:
        message = error.format_message()
        if message:  # empty without arguments, where the help was shown
            print(f"error: {message}", file=sys.stderr)
        code = 2
    except BasisSharingError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # of torch, which is not imported here
            raise
        print(
            "error: the device has too little memory for this: pass --device cpu, or shorter windows (--length).",
            file=sys.stderr,
        )
        code = 2
    except (KeyboardInterrupt, typer.Abort):
        print("interrupted: nothing was written.", file=sys.stderr)
        code = 130
    sys.exit(code or 0)
