"""Where a model may be: paths and addresses, and folders that look like a model's and are none."""

from pathlib import Path
from urllib.parse import unquote, urlsplit

from basis_sharing.errors import ModelError
from basis_sharing.models.adapters import refuse_adapter
from basis_sharing.models.file_checks import check_file


def path_of(given: str) -> Path:
    """Return the path that a text gives: a path, also with ``~``, or an address that begins with ``file://``.

    Raises:
        ModelError: It names the home of an unknown user.
    """
    address = urlsplit(given) if given.startswith("file://") else None
    try:
        return Path(given if address is None else unquote(address.path)).expanduser()
    except RuntimeError as error:
        raise ModelError(f"{given} names a user who is not known here; give the path of the folder.") from error


def refuse_without_config(given: str, path: Path) -> None:
    """Refuse a folder without the configuration of a model, and say what it is where that can be seen.

    Args:
        given: The folder as the user gave it.
        path: The folder.

    Raises:
        ModelError: ``config.json`` is missing, or is no file with content of its own.
    """
    config = path / "config.json"
    if config.is_symlink() or config.exists():
        check_file(config)
        return
    refuse_adapter(path)
    if (path / "snapshots").is_dir() and path.name.startswith("models--"):
        name = path.name.removeprefix("models--").replace("--", "/")
        raise ModelError(
            f"{given} is the cache of {name}, with a folder for each version: give {name}, or one of the folders in "
            "its snapshots."
        )
    raise ModelError(f"{given} has no config.json; give the folder of a Hugging Face model.")
