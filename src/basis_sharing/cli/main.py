"""The command line: one verb per file, errors as one sentence, exit code 2."""

import sys
from typing import Annotated

import click
import typer

import basis_sharing
from basis_sharing.cli import compress, evaluate, inspect
from basis_sharing.errors import BasisSharingError

app = typer.Typer(
    name="basis-sharing",
    help="Make language models smaller: weight matrices of different layers share basis vectors. No fine-tuning.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("compress")(compress.compress)
app.command("eval")(evaluate.evaluate)
app.command("inspect")(inspect.inspect)


def _version(show: bool) -> None:
    if show:
        print(f"basis-sharing {basis_sharing.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    pass


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0, 2 for anything the user can mend, 130 after an interrupt."""
    try:
        code = app(arguments, standalone_mode=False)
    except (BasisSharingError, click.ClickException) as error:
        message = error.format_message() if isinstance(error, click.ClickException) else str(error)
        print(f"error: {message}", file=sys.stderr)
        code = 2
    except (KeyboardInterrupt, click.Abort):
        print("interrupted: nothing was written.", file=sys.stderr)
        code = 130
    sys.exit(code or 0)
