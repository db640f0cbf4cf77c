"""Options of the command line: those derived from the declarations of settings, and those common to several verbs."""

import functools
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer
from pydantic_core import PydanticUndefined

from basis_sharing.recipe.recipe import Recipe
from basis_sharing.recipe.settings import Option, Settings, flag_of, value_type
from basis_sharing.recipe.target import TARGETS

Given = dict[str, Any]
"""Settings by name, as they were given on the command line and in a recipe file; not yet validated."""


def settings_options(
    settings: type[Settings] = Recipe, *, without: tuple[str, ...] = (), recipe_file: bool = False
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return a decorator that replaces the parameter ``settings`` of a command by one option for every setting.

    Args:
        settings: The settings from whose declarations the options are made.
        without: Settings that the command does not have.
        recipe_file: Whether the command has ``--recipe FILE``; flags take precedence over the file.
    """
    options = {name: option for name, option in settings.options().items() if name not in without}

    def decorated(command: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(command).parameters
        hints = get_type_hints(command, include_extras=True)

        @functools.wraps(command)
        def called(**arguments: Any) -> None:
            file = arguments.pop("recipe", None) if recipe_file else None
            given: Given = settings.settings_in(file) if file is not None else {}
            given |= dict(_given(options, {name: arguments.pop(name) for name in options}))
            command(settings=given, **arguments)

        parameters = []
        for name, parameter in own.items():
            if name != "settings":
                parameters.append(parameter.replace(annotation=hints[name]))
                continue
            parameters += [_parameter(settings, name, option) for name, option in options.items()]
            if recipe_file:
                parameters.append(_keyword("recipe", RecipeFile, None))
        first = [p for p in parameters if p.default is inspect.Parameter.empty]
        rest = [p for p in parameters if p.default is not inspect.Parameter.empty]
        called.__signature__ = inspect.Signature(first + rest)  # type: ignore[attr-defined]
        called.__annotations__ = {p.name: p.annotation for p in parameters}
        return called

    return decorated


def _given(options: dict[str, Option], arguments: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the settings that were given; a flag that turns a setting off gives False."""
    for name, option in options.items():
        value = arguments[name]
        if option.flag is not None:
            if value:
                yield name, False
        elif value is not None and value != []:
            yield name, tuple(value) if option.repeated else value


def _parameter(settings: type[Settings], name: str, option: Option) -> inspect.Parameter:
    field = settings.model_fields[name]
    kind = value_type(field)
    if option.flag is not None:
        shown = typer.Option(option.flag, help=f"{option.help}.", show_default=False, rich_help_panel=option.panel)
        return _keyword(name, Annotated[bool, shown], False)
    default = option.default or field.default
    unset = default is None or default is PydanticUndefined
    annotation: Any = list[str] | None if option.repeated else (str if option.text or kind is tuple else kind) | None
    shown = typer.Option(
        flag_of(name, option),
        help=f"{option.help}." if unset else f"{option.help} (default: {default}).",
        metavar=option.metavar,
        show_default=False,
        rich_help_panel=option.panel,
    )
    return _keyword(name, Annotated[annotation, shown], None)


def _keyword(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=default, annotation=annotation)


def with_target(given: Given, ratio: str) -> Given:
    """Return settings with a target: the given one, or else the ratio."""
    return given if any(name in given for name in TARGETS) else {**given, "ratio": ratio}


def limit(help_text: str, metavar: str) -> Any:
    """Return an option for a limit on the differences of two models."""
    return typer.Option(help=help_text, metavar=metavar, show_default=False, rich_help_panel="Limits")


def model_argument() -> Any:
    """Return the argument that names a model."""
    return typer.Argument(help="A model folder, a .gguf file, or a hub id.", metavar="MODEL")


def output_option(help_text: str, metavar: str) -> Any:
    """Return the option that names the output."""
    return typer.Option("--output", "-o", help=help_text, metavar=metavar)


ModelArgument = Annotated[str, model_argument()]
RecipeFile = Annotated[
    Path | None,
    typer.Option(
        "--recipe",
        help="A YAML or JSON file with these settings; flags go before it.",
        metavar="FILE",
        show_default=False,
    ),
]
Work = Annotated[
    Path | None,
    typer.Option(
        help="Keep what is measured (second moments, loss curves) in this folder and take it from there: another ratio "
        "of the same model and text needs no calibration. Takes a few times the size of the model.",
        metavar="DIR",
        show_default=False,
    ),
]
Device = Annotated[
    str | None,
    typer.Option(
        help="Where blocks run and matrices are decomposed, one at a time: auto, cpu, cuda or mps (default: auto).",
        metavar="DEVICE",
        show_default=False,
    ),
]
MaxMemory = Annotated[
    str | None,
    typer.Option(
        help="Memory this run may take, e.g. 6GiB (default: most of what is free). Weights used from their files do "
        "not count: the system can drop their pages.",
        metavar="N",
        show_default=False,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]
OverwriteFolder = Annotated[bool, typer.Option("--overwrite", help="Replace a model folder that exists.")]
MaxKl = Annotated[float | None, limit("Most nats per token that the mean KL divergence may reach, e.g. 0.05.", "NATS")]
MaxIncrease = Annotated[
    str | None, limit("How much the perplexity may be above the original's (the first model's), e.g. 5%.", "P")
]
MinAgreement = Annotated[
    str | None, limit("Least share of positions where both find the same token most probable, e.g. 90%.", "P")
]
