"""The weight files of a model folder: which they are, their headers, integrity checks and a fingerprint.

Which files are the model is decided here alone, as transformers decides: sizes, dtypes, fingerprints and kept
measurements then belong to the files that are read.
"""

import hashlib
import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

from basis_sharing.errors import ModelError
from basis_sharing.models.adapters import refuse_adapter
from basis_sharing.models.file_checks import check_file, get_again, readable

_INDEX_ENDING = ".index.json"
_SAFETENSORS = ("model.safetensors", "model.safetensors.index.json")
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_HEADER_LIMIT = 100_000_000  # safetensors' own limit: a longer header is a damaged length field
_SAMPLE = 512
_SAMPLES_PER_FILE = 512
_BITS = {"BOOL": 8, "I8": 8, "U8": 8, "I16": 16, "U16": 16, "I32": 32, "U32": 32, "I64": 64, "U64": 64}
_BITS |= {"F16": 16, "BF16": 16, "F32": 32, "F64": 64, "C64": 64, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8}
_BITS |= {"F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}


@readable
def weight_files(path: Path) -> tuple[Path, ...]:
    """Return the weight files of a model, those that transformers reads, sorted by name.

    These are the file that ``transformers_weights`` in ``config.json`` names, else ``model.safetensors``, else the
    shards of its index, else ``pytorch_model.bin``, else the shards of its index. No other file counts: stray
    safetensors may be an optimizer, an adapter or a copy in another format.

    Args:
        path: Folder of a model, or one weight file.

    Raises:
        ModelError: There are none, they are links to nothing, or the index cannot be read or names missing files.
    """
    if path.is_file():
        return (path,)
    file = _first(path)
    if file is None:
        refuse_adapter(path)
        raise ModelError(f"{path} holds no weight files{_strays(path)}: save model.safetensors beside config.json.")
    check_file(file)
    return _indexed(file) if file.name.endswith(_INDEX_ENDING) else (file,)


def has_weights(folder: Path) -> bool:
    """Return whether a folder has weight files, as far as names tell."""
    return _first(folder) is not None


def has_safetensors(folder: Path) -> bool:
    """Return whether the weights of a folder are in safetensors, as far as names tell."""
    return any((folder / name).is_file() for name in (*_named(folder), *_SAFETENSORS))


@readable
def check_weight_files(path: Path) -> None:
    """Check that every weight file is complete, reading only headers and sizes.

    Raises:
        ModelError: A file is missing, truncated or damaged, or two files hold the same tensor; the message names it.
    """
    found: dict[str, Path] = {}
    for file in weight_files(path):
        check_file(file)
        for name in read_header(file) if file.suffix == ".safetensors" else ():
            if name in found:
                raise ModelError(
                    f"{found[name].name} and {file.name} in {file.parent} both hold the weight {name}: they are of two "
                    f"saves; {get_again(file)}."
                )
            found[name] = file


@readable
def read_header(file: Path) -> dict[str, Any]:
    """Return the header of a safetensors file: tensor name -> dtype, shape and data offsets.

    Raises:
        ModelError: The header is damaged, or the size of the file does not match it.
    """
    check_file(file)
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > min(size - 8, _HEADER_LIMIT):
            raise ModelError(f"{file} is truncated or damaged (its header does not fit in it): {get_again(file)}.")
        try:
            header = json.loads(stream.read(length))
            tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
            end = max((_end(entry) for entry in tensors.values()), default=0)
        except (ValueError, AttributeError, KeyError, IndexError, TypeError, RecursionError) as error:
            raise ModelError(f"{file} is damaged (its header cannot be read): {get_again(file)}.") from error
    expected = 8 + length + end
    if size != expected:
        problem = "truncated" if size < expected else "damaged"
        raise ModelError(f"{file} is {problem} ({size:,} bytes instead of {expected:,}): {get_again(file)}.")
    return tensors


@readable
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


def _end(entry: dict[str, Any]) -> int:
    """Return where the bytes of a tensor end; raise ValueError if its dtype, shape and offsets contradict."""
    start, end = entry["data_offsets"]
    numbers = [start, end, *entry["shape"]]
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise ValueError(entry)
    if 8 * (end - start) != math.prod(entry["shape"]) * _BITS[entry["dtype"]]:
        raise ValueError(entry)
    return int(end)


def _first(folder: Path) -> Path | None:
    """Return the file that is the model, or the index of its shards; a link to nothing counts."""
    files = (folder / name for name in (*_named(folder), *_SAFETENSORS, *_PICKLES))
    return next((file for file in files if file.is_symlink() or file.exists()), None)


def _named(folder: Path) -> tuple[str, ...]:
    """Return the name of the weight file that the configuration of a folder gives, if it gives one."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return ()  # who needs the configuration says what is wrong with it
    name = config.get("transformers_weights") if isinstance(config, dict) else None
    return (name,) if isinstance(name, str) else ()


def _indexed(index: Path) -> tuple[Path, ...]:
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
        names = sorted(set(content["weight_map"].values()))
        whole = names and all(isinstance(name, str) for name in names) and isinstance(content["metadata"], dict)
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        whole = False
    if not whole:
        raise ModelError(f"{index} cannot be read as an index of shards: {get_again(index)}.")
    files = tuple(index.parent / name for name in names)
    missing = [file.name for file in files if not (file.is_symlink() or file.exists())]
    if missing:
        raise ModelError(
            f"{index.parent} is incomplete: {index.name} names {', '.join(map(os.fspath, missing))}, which is not "
            f"there: {get_again(index)}."
        )
    for file in files:
        check_file(file)
    return files


def _strays(folder: Path) -> str:
    """Return, in brackets, which files look like weights and are not read; empty if there are none."""
    names = sorted(
        file.name for pattern in ("*.safetensors", "*.bin", "*.pt", "*.pth") for file in folder.glob(pattern)
    )
    if not names:
        return ""
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f" that transformers reads ({names[0]}{more} has another name)"
