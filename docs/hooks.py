"""Pages of the command line and of the Python interface, generated whenever the site is built.

Those of the command line are made from its help, that of Python from the docstrings of everything in
``basis_sharing.__all__``, which are read as text: building the site imports no torch.
"""

import ast
import re
from itertools import zip_longest
from pathlib import Path
from textwrap import dedent
from typing import Any

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

import basis_sharing
from basis_sharing.cli.main import app

FOLDER = "cli"
SECTION = "Commands"
API = "api.md"
_EXAMPLE = re.compile(r"(?m)(?:^    .*\n?)+")


def verbs() -> dict[str, Any]:
    """Return the commands of the application by the name a user types."""
    group: Any = typer.main.get_command(app)
    return dict(group.commands)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Give every verb a line in the navigation, and the Python interface one."""
    nav: list[Any] = config.nav or []
    of_verbs = [{verb: f"{FOLDER}/{_file(verb)}"} for verb in verbs()]
    nav.append({SECTION: [{"All verbs": f"{FOLDER}/index.md"}, *of_verbs]})
    nav.append({"Python": [{"All functions": API}]})
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
    rows = "\n".join(f"| [`{verb}`]({_file(verb)}) | {_cell(_summary(verb_))} |" for verb, verb_ in described.items())
    index = (
        "# All verbs\n\nEvery verb answers `--help`, most answer `--json`. Errors are one sentence and exit code 2; "
        f"what the other codes mean stands under [exit codes](../production.md#exit-codes).\n\n"
        f"| verb | what it does |\n|---|---|\n{rows}\n"
    )
    verb_pages = {f"{FOLDER}/{_file(verb)}": _page(verb, it) for verb, it in described.items()}
    return {f"{FOLDER}/index.md": index, API: api_page()} | verb_pages


def _file(verb: str) -> str:
    """Return the name of a verb's page: a verb of two words has a hyphen there."""
    return f"{verb.replace(' ', '-')}.md"


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
    name = ", ".join(f"`{opt}`" for opt in (*option.opts, *option.secondary_opts))
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


Definition = ast.FunctionDef | ast.ClassDef


def definitions() -> dict[str, Definition]:
    """Return what is public by name, as syntax trees: functions first, then data, then errors."""
    found = {}
    names = sorted(basis_sharing.__all__, key=lambda name: (name.endswith("Error"), not name.islower(), name))
    for name in names:
        path = Path(basis_sharing.__file__).parents[1].joinpath(*basis_sharing._module_of(name).split("."))
        for node in ast.parse(path.with_suffix(".py").read_text(encoding="utf-8")).body:
            if isinstance(node, Definition) and node.name == name:
                found[name] = node
    return found


def example(definition: Definition) -> str | None:
    """Return the code of the example in a docstring, without the prompts of a session."""
    text = _sections(definition).get("Example")
    if text is None:
        return None
    lines = [line for line in dedent(text).splitlines() if not line.startswith("```")]
    session = any(line.startswith(">>> ") for line in lines)
    return "\n".join(line[4:] for line in lines if line[:4] in (">>> ", "... ")) if session else "\n".join(lines)


def api_page() -> str:
    """Return the page of the Python interface."""
    intro = (
        "# Python\n\n`import basis_sharing` is cheap and imports no torch; what is used is loaded then. Every function "
        "is a [verb of the command line](cli/index.md) too (except `load`), with the same names for the same things. "
        "What can be mended by its caller is raised as an error under `BasisSharingError`, one sentence each."
    )
    return "\n\n".join([intro, *(_entry(name, node) for name, node in definitions().items())]) + "\n"


def _entry(name: str, node: Definition) -> str:
    sections = _sections(node)
    parts = [f"## {name}", f"```python\n{_signature(node)}\n```", _markdown(sections[""])]
    for title in ("Args", "Attributes", "Returns", "Raises"):
        if title in sections:
            heading = {"Args": "Arguments"}.get(title, title)
            body = _markdown(" ".join(sections[title].split())) if title == "Returns" else _items(sections[title])
            parts.append(f"**{heading}**\n\n{body}")
    code = example(node)
    if code is not None:
        parts.append(f"**Example**\n\n```python\n{code.strip()}\n```")
    return "\n\n".join(parts)


def _sections(node: Definition) -> dict[str, str]:
    """Return the sections of a docstring by their titles; what comes before the first has none."""
    parts = re.split(r"(?m)^(Args|Attributes|Returns|Raises|Example):\n", ast.get_docstring(node) or "")
    return {"": parts[0].strip()} | {title: text.rstrip() for title, text in zip(parts[1::2], parts[2::2], strict=True)}


def _items(text: str) -> str:
    """Turn ``name: meaning`` entries into a list."""
    entries = re.findall(r"(?m)^([\w*, ]+): ((?:.*\n?)(?:^ +.*\n?)*)", dedent(text))
    return "\n".join(f"- `{name}`: {_markdown(' '.join(meaning.split()))}" for name, meaning in entries)


def _markdown(text: str) -> str:
    """Turn the markup of docstrings into Markdown."""
    text = re.sub(r":\w+:`~?([^`]+)`", lambda found: f"`{found[1].rpartition('.')[2]}`", text)
    return text.replace("``", "`")


def _signature(node: Definition) -> str:
    if isinstance(node, ast.ClassDef):
        bases = ", ".join(ast.unparse(base) for base in node.bases)
        return f"class basis_sharing.{node.name}({bases})"
    found = node.args
    positional = [*found.posonlyargs, *found.args]
    defaults = zip_longest(reversed(positional), reversed(found.defaults))
    shown = [_parameter(argument, default) for argument, default in defaults][::-1]
    if found.vararg is not None:
        shown.append(f"*{ast.unparse(found.vararg)}")
    elif found.kwonlyargs:
        shown.append("*")
    shown += [_parameter(*pair) for pair in zip(found.kwonlyargs, found.kw_defaults, strict=True)]
    if found.kwarg is not None:
        shown.append(f"**{ast.unparse(found.kwarg)}")
    returned = "" if node.returns is None else f" -> {ast.unparse(node.returns)}"
    return f"basis_sharing.{node.name}(\n" + "".join(f"    {one},\n" for one in shown) + f"){returned}"


def _parameter(argument: ast.arg, default: ast.expr | None) -> str:
    return ast.unparse(argument) + ("" if default is None else f" = {ast.unparse(default)}")
