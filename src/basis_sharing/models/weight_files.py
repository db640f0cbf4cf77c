"""The weight files of a model folder: their paths, integrity checks and a fingerprint."""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

from basis_sharing.errors import ModelError

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_HEADER_LIMIT = 100_000_000  # safetensors' own limit: a longer header is a damaged length field
_SAMPLE = 512
_SAMPLES_PER_FILE = 512


def weight_files(path: Path) -> tuple[Path, ...]:
    """Return the weight files of a model, sorted by name.

    Safetensors are preferred to GGUF and GGUF to PyTorch's ``.bin``. If there is an index or ``model.safetensors``,
    other safetensors (adapters, consolidated copies) are not counted.

    Args:
        path: Folder of a model, or one weight file.

    Raises:
        ModelError: There are none, or the index cannot be read or names files that are missing.
    """
    if path.is_file():
        return (path,)
    if (path / _INDEX).is_file():
        return _indexed(path / _INDEX)
    if (path / _SINGLE).is_file():
        return (path / _SINGLE,)
    for pattern in ("*.safetensors", "*.gguf", "pytorch_model*.bin"):
        files = tuple(sorted(path.glob(pattern)))
        if files:
            return files
    raise ModelError(f"{path} holds no weight files; expected *.safetensors (or one .gguf file) beside config.json.")


def check_weight_files(path: Path) -> None:
    """Check that every weight file is complete, reading only headers and sizes.

    Raises:
        ModelError: A file is missing, truncated or damaged; the message names it.
    """
    for file in weight_files(path):
        if file.suffix == ".safetensors":
            read_header(file)
        elif file.suffix == ".gguf" and _first_bytes(file, 4) != b"GGUF":
            raise ModelError(f"{file} is not a GGUF file, or is damaged; download it again.")


def read_header(file: Path) -> dict[str, Any]:
    """Return the header of a safetensors file: tensor name -> dtype, shape and data offsets.

    Raises:
        ModelError: The header is damaged, or the size of the file does not match it.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > min(size - 8, _HEADER_LIMIT):
            raise ModelError(f"{file} is truncated or damaged (its header does not fit in it); download it again.")
        try:
            header = json.loads(stream.read(length))
            tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
            end = max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
        except (ValueError, AttributeError, KeyError, IndexError, TypeError) as error:
            raise ModelError(f"{file} is damaged (its header cannot be read); download it again.") from error
    expected = 8 + length + end
    if size != expected:
        problem = "truncated" if size < expected else "damaged"
        raise ModelError(f"{file} is {problem} ({size:,} bytes instead of {expected:,}); download it again.")
    return tensors


def fingerprint_files(files: Iterable[Path], config: dict[str, Any]) -> str:
    """Return a hash of a model that does not depend on where or when it was stored.

    It covers the configuration, and of each file its size, header and samples: the first bytes of every tensor of a
    safetensors file, and evenly spaced bytes of any file.

    Args:
        files: The weight files in order.
        config: The parsed ``config.json``; the path and the transformers version in it are ignored.

    Returns:
        32 hexadecimal digits.
    """
    digest = hashlib.blake2b(digest_size=16)
    relevant = {k: v for k, v in config.items() if k not in {"_name_or_path", "transformers_version"}}
    digest.update(json.dumps(relevant, sort_keys=True).encode())
    for file in files:
        size = file.stat().st_size
        digest.update(f"\0{size}\0".encode())
        with file.open("rb") as stream:
            for offset in _sampled_offsets(file, size, stream):
                stream.seek(offset)
                digest.update(stream.read(_SAMPLE))
    return digest.hexdigest()


def _sampled_offsets(file: Path, size: int, stream: BinaryIO) -> list[int]:
    spaced = [size * i // _SAMPLES_PER_FILE for i in range(_SAMPLES_PER_FILE)]
    offsets = {*spaced, max(0, size - _SAMPLE)}
    if file.suffix == ".safetensors":
        tensors = read_header(file)
        data = 8 + int.from_bytes(stream.read(8), "little")
        offsets |= set(range(0, data, _SAMPLE))
        offsets |= {data + entry["data_offsets"][0] for entry in tensors.values()}
    return sorted(offsets)


def _indexed(index: Path) -> tuple[Path, ...]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ModelError(f"{index} cannot be read as an index of shards; download it again.") from error
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise ModelError(
            f"{index.parent} is incomplete: {index.name} names {', '.join(map(os.fspath, missing))}, which is not "
            "there; download the model again."
        )
    return tuple(index.parent / name for name in names)


def _first_bytes(file: Path, count: int) -> bytes:
    with file.open("rb") as stream:
        return stream.read(count)
