"""Fetching of models from the Hugging Face Hub."""

from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import GatedRepoError

from basis_sharing.errors import ModelError

_SMALL_FILES = ("*.json", "*.txt", "*.model", "*.jinja")


def fetched(name: str, *, weights: bool) -> Path:
    """Return the local folder of a model on the hub; configuration and, if asked, weights are downloaded unless cached.

    Raises:
        ModelError: It cannot be fetched.
    """
    try:
        folder = Path(snapshot_download(name, allow_patterns=list(_SMALL_FILES)))
        if weights:
            snapshot_download(name, allow_patterns=["model*.safetensors"])
            if not any(folder.glob("*.safetensors")):
                snapshot_download(name, allow_patterns=["pytorch_model*.bin"])
    except GatedRepoError as error:
        raise ModelError(
            f"{name} is only for those who accepted its licence; accept it on the Hugging Face Hub and run "
            "hf auth login."
        ) from error
    except Exception as error:  # no network, no such model, no disk space: each is another error of the hub client
        raise ModelError(
            f"{name} is no file or folder here and could not be fetched from the Hugging Face Hub "
            f"({first_line(error)}); check the name and the network."
        ) from error
    return folder


def first_line(error: Exception) -> str:
    """Return the first line of the message of an error without its full stop, or its type."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
