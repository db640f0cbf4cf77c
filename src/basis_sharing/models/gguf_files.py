"""The header of a GGUF file: whether it holds one whole language model, known before anything is described."""

import math
import re
import struct
from pathlib import Path
from typing import BinaryIO

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from basis_sharing.errors import ModelError
from basis_sharing.models.file_checks import check_file, get_again, readable

_PART = re.compile(r"(.*)-\d{5}-of-(\d{5})\.gguf")
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_MERGE = "merge the parts first, with gguf-split --merge of llama.cpp, and give the merged file"
_OTHER_KINDS = {
    "adapter": "an adapter, not a model: merge it into its model first",
    "imatrix": "an importance matrix, not a model: give the model's own file",
    "mmproj": "the projector of a multimodal model: give the file of its language model",
    "clip": "the vision part of a multimodal model: give the file of its language model",
}


def gguf_in(folder: Path) -> Path | None:
    """Return the only GGUF file of a folder; None without any.

    Raises:
        ModelError: There are several, or parts of one.
    """
    files = sorted(folder.glob("*.gguf"))
    for file in files:
        _refuse_part(file)
    if len(files) > 1:
        raise ModelError(f"{folder} holds {len(files)} GGUF files; give the path of the one to read.")
    return files[0] if files else None


@readable
def check_gguf(file: Path) -> None:
    """Check that a GGUF file holds one whole language model, reading only its header.

    Raises:
        ModelError: It is damaged, one of several parts, or of another kind; the message says which.
    """
    check_file(file)
    _refuse_part(file)
    with file.open("rb") as stream:
        try:
            tensors, fields = _header(stream)
            end = _end(stream, tensors, fields)
        except (struct.error, ValueError, KeyError, OverflowError, MemoryError) as error:
            raise ModelError(f"{file} is no GGUF file, or is damaged: {get_again(file)}.") from error
    size = file.stat().st_size
    if size < end:
        raise ModelError(f"{file} is truncated ({size:,} bytes instead of {end:,}): {get_again(file)}.")
    parts = fields.get("split.count", 0)
    if isinstance(parts, int) and parts > 1:
        raise ModelError(f"{file} is one of {parts} parts of a model: {_MERGE}.")
    architecture = str(fields.get("general.architecture"))
    kind = fields.get("general.type", "model")
    other = _OTHER_KINDS.get(str(kind), _OTHER_KINDS.get(architecture))
    if other is not None:
        raise ModelError(f"{file} holds {other}.")
    if tensors == 0:
        raise ModelError(f"{file} holds a vocabulary and no weights: give the file of the whole model.")
    for name in ("block_count", "embedding_length"):
        if f"{architecture}.{name}" not in fields:
            raise ModelError(f"{file} does not say its {architecture}.{name}: give the file of a whole model.")


def _refuse_part(file: Path) -> None:
    found = _PART.fullmatch(file.name)
    if found and int(found[2]) > 1:
        raise ModelError(f"{file} is one of {int(found[2])} parts of a model: {_MERGE}.")


def _header(stream: BinaryIO) -> tuple[int, dict[str, object]]:
    """Return the number of tensors and the fields whose values are numbers or texts."""
    if stream.read(4) != b"GGUF":
        raise ValueError
    version, tensors, count = struct.unpack("<IQQ", stream.read(20))
    if version not in (2, 3):
        raise ValueError(version)
    fields: dict[str, object] = {}
    for _ in range(count):
        name = _string(stream)
        fields[name] = _value(stream, struct.unpack("<I", stream.read(4))[0])
    return tensors, fields


def _end(stream: BinaryIO, tensors: int, fields: dict[str, object]) -> int:
    """Return the bytes that the file should have, from the list of tensors behind the fields."""
    ends = [0]
    for _ in range(tensors):
        _string(stream)
        (dimensions,) = struct.unpack("<I", stream.read(4))
        shape = struct.unpack(f"<{dimensions}Q", stream.read(8 * dimensions))
        kind, offset = struct.unpack("<IQ", stream.read(12))
        block, size = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
        ends.append(offset + math.prod(shape) * size // block)
    alignment = fields.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1:
        raise ValueError(alignment)
    return -(-stream.tell() // alignment) * alignment + max(ends)


def _value(stream: BinaryIO, kind: int) -> object:
    """Return a value, or None for an array, which is skipped."""
    if kind == _STRING:
        return _string(stream)
    if kind != _ARRAY:
        form = f"<{_SCALARS[kind]}"
        return struct.unpack(form, stream.read(struct.calcsize(form)))[0]
    inner, count = struct.unpack("<IQ", stream.read(12))
    if inner in _SCALARS:
        stream.seek(count * struct.calcsize(f"<{_SCALARS[inner]}"), 1)
        return None
    for _ in range(count):
        _value(stream, inner)
    return None


def _string(stream: BinaryIO) -> str:
    (length,) = struct.unpack("<Q", stream.read(8))
    text = stream.read(length) if length < 2**31 else b""
    if len(text) != length:
        raise ValueError(length)
    return text.decode("utf-8", errors="replace")
