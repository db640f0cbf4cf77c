"""The entry point of the command line: errors are one sentence, with exit code 2."""

import importlib
import inspect
import logging
import os
import pkgutil
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Annotated, Any, TextIO

import typer
import typer.core

import basis_sharing
import basis_sharing.cli
import basis_sharing.verbs
from basis_sharing.errors import BasisSharingError, ModelWarning, RecipeError

_FIRST = ("compress", "plan", "evaluate", "compare", "bench", "report", "inspect", "study", "recover", "export")
"""The order of the verbs in help texts; others follow by name."""

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


_TALKATIVE = ("torchao", "torch.utils._pytree")
"""Loggers that warn while transformers is imported, where torchao is installed beside a torch for CPUs."""

app = typer.Typer(
    name="basis-sharing",
    cls=Verbs,
    help="Make language models smaller: weight matrices of different layers share basis vectors. No fine-tuning.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def verbs() -> Iterator[tuple[str, Callable[..., None]]]:
    """Yield every verb and its command, in the order of help texts.

    A file of this folder is a verb where a file of the folder ``verbs`` has the same name: its function of that name.
    Other public functions that are defined in it have a second word: ``diff`` in ``plan.py`` is ``plan diff``.
    """
    here, stories = (
        {found.name for found in pkgutil.iter_modules(package.__path__)}
        for package in (basis_sharing.cli, basis_sharing.verbs)
    )
    first = {name: place for place, name in enumerate(_FIRST)}
    for name in sorted(here & stories, key=lambda name: (first.get(name, len(first)), name)):
        module = importlib.import_module(f"basis_sharing.cli.{name}")
        yield name, getattr(module, name)
        for second, command in vars(module).items():
            own = inspect.isfunction(command) and command.__module__ == module.__name__
            if own and second != name and not second.startswith("_"):
                yield f"{name} {second}", command


for _name, _command in verbs():
    app.command(_name)(_command)


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


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Print notes about a model as one line on stderr, and other warnings as Python does."""
    known = category is ModelWarning
    text = f"note: {message}\n" if known else warnings.formatwarning(message, category, filename, lineno, line)
    (file or sys.stderr).write(text)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0, 1 for a broken limit, 2 for an error of the user, 130 after an interrupt."""
    warnings.showwarning = _show_warning
    for imported in _TALKATIVE:
        logging.getLogger(imported).setLevel(logging.ERROR)
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
