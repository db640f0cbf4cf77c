"""The base class of all settings: one declaration per setting, and errors as one sentence.

A setting is a field of a :class:`Settings` class, annotated with an :class:`Option`. Its help text, flag and default
are declared only there; the command line, the YAML file, the Python keywords and the documentation are derived from it.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

from basis_sharing.errors import RecipeError

_OF_THE_COMMAND = "an option of the command, not a setting of the recipe: give it there"
MOVED: dict[str, str] = {
    "no_gradients": "write `gradients: false`",
    "no_sharing": "write `across_depth: false`",
    "no_joint_roles": "write `across_roles: false`",
    "no_zero_points": "write `zero_points: false`",
    "sharing": "it is called `across_depth`",
    "joint_roles": "it is called `across_roles`",
    "groups": "groups and their ranks are entries of a plan: write `plan: FILE`",
    "rank": "ranks are in the entries of a plan: write `plan: FILE`",
    "for": "it is called `runs_on`",
    "minutes": "minutes of training belong to `refine` here, and to the command `recover`",
    "text": "the calibration text is `calibration`, texts to measure on are `evaluate`",
    **dict.fromkeys(("output", "overwrite", "work", "device", "max_memory", "progress"), _OF_THE_COMMAND),
}
"""Hints for settings that have another name or belong elsewhere, by the name a user may try."""


@dataclass(frozen=True)
class Option:
    """The appearance of a setting on the command line and in the documentation.

    Attributes:
        help: Help text, without a full stop.
        metavar: Placeholder of the value in help texts.
        default: Description of the default; None: its value is shown.
        flag: Flag that turns off a setting that is on by default, e.g. ``--no-gradients``.
        panel: Heading under which ``--help`` lists it.
        text: Whether it is given as text and parsed by a validator, e.g. ``"90M"`` or ``"5%"``.
        repeated: Whether the flag may be given several times.
        name: Its flag, if that is not ``--`` and its name.
    """

    help: str
    metavar: str | None = None
    default: str | None = None
    flag: str | None = None
    panel: str | None = None
    text: bool = False
    repeated: bool = False
    name: str | None = None


class Settings(BaseModel):
    """Immutable settings without unknown fields; invalid ones raise :class:`~basis_sharing.errors.RecipeError`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @classmethod
    def create(cls, **settings: Any) -> Self:
        """Return validated settings.

        Raises:
            RecipeError: A setting is invalid; the message is one sentence about the first one.
        """
        try:
            return cls(**settings)
        except ValidationError as error:
            raise RecipeError(cls.sentence_of(error)) from None

    @classmethod
    def sentence_of(cls, error: ValidationError) -> str:
        """Return one sentence about the first error."""
        first = error.errors()[0]
        if first["type"] == "extra_forbidden":
            unknown = str(first["loc"][0])
            return f"unknown setting {unknown!r}: {cls.nearest(unknown)}"
        if first["type"] == "value_error":
            return first["msg"].removeprefix("Value error, ")
        name = ".".join(str(part) for part in first["loc"])
        return f"setting {name!r} with value {first['input']!r}: {first['msg'][0].lower()}{first['msg'][1:]}."

    @classmethod
    def settings_in(cls, path: Path) -> dict[str, Any]:
        """Return the settings in a YAML or JSON file as arguments of :meth:`create`.

        Raises:
            RecipeError: The file cannot be read or is not a mapping of setting names to values.
        """
        try:
            settings = yaml.safe_load(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise RecipeError(f"the recipe {path} cannot be read ({error.strerror}): check the path.") from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            reason = " ".join(str(error).split())
            raise RecipeError(f"the recipe {path} is not valid YAML ({reason}).") from None
        if not isinstance(settings, dict):
            raise RecipeError(f"the recipe {path} is not a mapping: write lines such as `ratio: 0.2`.")
        unknown = next((str(name) for name in settings if name not in cls.model_fields), None)
        if unknown is not None:
            raise RecipeError(f"the recipe {path} has the unknown setting {unknown!r}: {cls.nearest(unknown)}")
        return settings

    @classmethod
    def nearest(cls, name: str) -> str:
        """Return a hint for an unknown setting, as the end of a sentence."""
        if name in MOVED:
            return f"{MOVED[name]}."
        near = difflib.get_close_matches(name, cls.model_fields, n=1)
        return f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(cls.model_fields)}."

    @classmethod
    def options(cls) -> Mapping[str, Option]:
        """Return the settings that can be given on the command line, by name."""
        return {
            name: option
            for name, field in cls.model_fields.items()
            for option in field.metadata
            if isinstance(option, Option)
        }

    @classmethod
    def in_panel(cls, panel: str) -> tuple[str, ...]:
        """Return the settings that ``--help`` lists under a heading."""
        return tuple(name for name, option in cls.options().items() if option.panel == panel)


def flag_of(name: str, option: Option) -> str:
    """Return the flag of a setting on the command line."""
    return option.flag or option.name or "--" + name.replace("_", "-")


def value_type(field: FieldInfo) -> type:
    """Return the type of the values of a setting other than None; ``str`` for a choice, ``tuple`` for several."""
    annotation = field.annotation
    arguments = [argument for argument in get_args(annotation) if argument is not type(None)]
    if get_origin(annotation) is not None and len(arguments) == 1:
        annotation = arguments[0]
    if get_origin(annotation) is tuple:
        return tuple
    return annotation if isinstance(annotation, type) else str
