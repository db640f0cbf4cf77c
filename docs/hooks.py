"""Pages of the command line, generated from its help whenever the site is built, so that they cannot go stale."""

import re
from typing import Any

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from basis_sharing.cli.main import app

FOLDER = "cli"
SECTION = "Commands"
_EXAMPLE = re.compile(r"(?m)(?:^    .*\n?)+")


def verbs() -> dict[str, Any]:
    """Return the commands of the application by the name a user types."""
    group: Any = typer.main.get_command(app)
    return dict(group.commands)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Give every verb a line in the navigation."""
    nav: list[Any] = config.nav or []
    nav.append({SECTION: [{"All verbs": f"{FOLDER}/index.md"}, *({verb: f"{FOLDER}/{verb}.md"} for verb in verbs())]})
    config.nav = nav
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages to those on disk."""
    for path, content in pages().items():
        files.append(File.generated(config, path, content=content))
    return files


def pages() -> dict[str, str]:
    """Return path -> Markdown of every generated page."""
    described = verbs()
    rows = "\n".join(f"| [`{verb}`]({verb}.md) | {_cell(_summary(verb_))} |" for verb, verb_ in described.items())
    index = (
        "# All verbs\n\nEvery verb answers `--help`, most answer `--json`. Errors are one sentence and exit code 2; "
        f"what the other codes mean stands under [exit codes](../production.md#exit-codes).\n\n"
        f"| verb | what it does |\n|---|---|\n{rows}\n"
    )
    return {f"{FOLDER}/index.md": index} | {f"{FOLDER}/{verb}.md": _page(verb, it) for verb, it in described.items()}


def _page(verb: str, command: Any) -> str:
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option" and not p.hidden]
    usage = " ".join(["basis-sharing", verb, *(a.metavar or a.name.upper() for a in arguments), "[OPTIONS]"])
    parts = [f"# {verb}", _prose(command.help), f"```text\n{usage}\n```"]
    if arguments:
        rows = "\n".join(f"| `{a.metavar or a.name.upper()}` | {_cell(a.help)} |" for a in arguments)
        parts.append(f"## Arguments\n\n| argument | meaning |\n|---|---|\n{rows}")
    for panel in dict.fromkeys(option.rich_help_panel or "Options" for option in options):
        rows = "\n".join(_row(option) for option in options if (option.rich_help_panel or "Options") == panel)
        parts.append(f"## {panel}\n\n| option | meaning |\n|---|---|\n{rows}")
    return "\n\n".join(parts) + "\n"


def _row(option: Any) -> str:
    name = ", ".join(f"`{opt}`" for opt in option.opts)
    if not option.is_flag:
        name += f" `{option.metavar or option.name.upper()}`"
    shown = option.show_default and not option.is_flag and not option.required and option.default is not None
    end = " **Required.**" if option.required else f" Default: `{option.default}`." if shown else ""
    return f"| {name} | {_cell(option.help)}{end} |"


def _prose(text: str) -> str:
    """Turn help into Markdown: an indented example becomes a block of shell."""
    return _EXAMPLE.sub(lambda found: f"```sh\n{re.sub(r'(?m)^    ', '', found[0]).strip()}\n```\n", text).strip()


def _summary(command: Any) -> str:
    return str(command.help).split("\n\n")[0].replace("\n", " ")


def _cell(text: str) -> str:
    return re.sub(r"([|<*_])", r"\\\1", " ".join(text.split()))
