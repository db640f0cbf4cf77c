"""Files of text: opening, decompressing and decoding them, or saying what they are instead of text."""

import bz2
import gzip
import lzma
import stat
import unicodedata
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TextIO

from basis_sharing.errors import CorpusError

STANDARD_INPUT = "standard input"
COMPRESSED_SUFFIXES = (".gz", ".bz2", ".xz")

_DECOMPRESSORS: dict[bytes, tuple[str, Callable[[bytes], bytes]]] = {
    b"\x1f\x8b": ("gzip", gzip.decompress),
    b"BZh": ("bzip2", bz2.decompress),
    b"\xfd7zXZ\x00": ("xz", lzma.decompress),
}
_DECOMPRESS = "decompress it, and give what was in it"
_UNPACK = "unpack it, and give a file or the folder of it"
_EXTRACT = "save its text as a .txt file, and give that"
_NOT_TEXT = "give a text"
_FOREIGN_SUFFIXES = {
    **dict.fromkeys((".zst", ".lz4", ".br"), ("a compressed file of a kind that is not read here", _DECOMPRESS)),
    **dict.fromkeys((".zip", ".7z", ".rar", ".tar", ".tgz"), ("an archive", _UNPACK)),
    **dict.fromkeys((".pdf", ".epub", ".doc", ".docx", ".odt", ".rtf"), ("a formatted document", _EXTRACT)),
    **dict.fromkeys((".xls", ".xlsx", ".ods"), ("a spreadsheet", "save it as .csv, and give that")),
    **dict.fromkeys((".arrow", ".feather", ".orc", ".avro"), ("a table that is not read here", "save it as .parquet")),
    **dict.fromkeys((".pkl", ".pickle", ".pt", ".pth"), ("a pickle, which may run programs", _NOT_TEXT)),
    **dict.fromkeys((".db", ".sqlite", ".sqlite3"), ("a database", "save the table with the text as .csv")),
    **dict.fromkeys((".h5", ".hdf5", ".gguf"), ("a file of arrays", _NOT_TEXT)),
    **dict.fromkeys((".png", ".jpg", ".jpeg", ".gif", ".webp"), ("a picture", _NOT_TEXT)),
    **dict.fromkeys((".mp3", ".mp4", ".wav", ".ogg", ".flac"), ("a recording", _NOT_TEXT)),
}
"""What a suffix stands for that is not text, and what to do."""

_FOREIGN_STARTS = {
    b"(\xb5/\xfd": ("compressed with zstd", "decompress it (zstd -d)"),
    b"\x1f\x8b": ("compressed twice", "decompress it once"),
    b"%PDF-": ("a PDF", "extract its text (pdftotext), and give that"),
    b"\xd0\xcf\x11\xe0": ("a document of an office program", _EXTRACT),
    b"PK\x03\x04": ("a zip archive, as .docx and .xlsx are too", "unpack it, or save its text as a .txt file"),
    b"7z\xbc\xaf": ("a 7z archive", _UNPACK),
    b"Rar!": ("a rar archive", _UNPACK),
    b"ARROW1": ("an Arrow file", "save it as .parquet"),
    b"SQLite format 3": ("a database", "save the table with the text as .csv"),
    b"GGUF": ("a GGUF model", _NOT_TEXT),
    b"\x89HDF": ("an HDF5 file", "save its text as a .txt or .jsonl file"),
    b"\x93NUMPY": ("a NumPy array", "save token windows as .npz or .safetensors"),
    b"\x89PNG": ("a picture", _NOT_TEXT),
    b"\xff\xd8\xff": ("a picture", _NOT_TEXT),
    b"version https://git-lfs": ("a pointer of Git LFS, not the file itself", "fetch the file (git lfs pull)"),
}
_BINARY = "it looks like a binary file; give a text"
_NO_WORDS = ("Cc", "Cn", "Co", "Cs")
_SAMPLE = 100_000
_TAR = slice(257, 262)
_FEW = 0.3  # of the bytes of a Latin text are accented letters
_BOMS = {
    b"\xef\xbb\xbf": "utf-8-sig",
    b"\xff\xfe\x00\x00": "utf-32",
    b"\x00\x00\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}
"""Byte order marks and the encodings that they tell; that of UTF-16 is the beginning of one of UTF-32."""


@dataclass(frozen=True)
class Content:
    """What a file holds.

    Attributes:
        name: The file, for messages.
        suffix: The suffix of the decompressed content in lower case; empty for standard input.
        raw: The decompressed bytes.
    """

    name: str
    suffix: str
    raw: bytes


def content_suffix(path: Path) -> str:
    """Return the suffix of a file's content in lower case: ``.jsonl`` for ``a.jsonl`` and for ``a.jsonl.gz``."""
    return Path(path.stem if path.suffix.lower() in COMPRESSED_SUFFIXES else path.name).suffix.lower()


def foreign_suffix(path: Path) -> tuple[str, str] | None:
    """Return what a suffix stands for that is not text, and what to do; None for all other suffixes."""
    return _FOREIGN_SUFFIXES.get(path.suffix.lower()) or _FOREIGN_SUFFIXES.get(content_suffix(path))


def read_plain(path: Path) -> str:
    """Return the content of a text file, decompressed and without a byte order mark.

    Raises:
        CorpusError: The file cannot be read, is damaged, is not UTF-8, or contains only white space.
    """
    return plain_text(file_content(path))


def file_content(path: Path) -> Content:
    """Return what a file holds, decompressed.

    Raises:
        CorpusError: The file cannot be read, or is damaged.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise CorpusError(f"{path} cannot be read ({error.strerror}): check its permissions.") from error
    return Content(str(path), content_suffix(path), _decompressed(raw, str(path)))


def piped_content(stream: TextIO) -> Content:
    """Return what standard input holds, decompressed; a second call returns the same.

    Raises:
        CorpusError: It is empty or damaged.
    """
    return Content(STANDARD_INPUT, "", _decompressed(_piped(stream), STANDARD_INPUT))


def plain_text(content: Content) -> str:
    """Return a content as text, without a byte order mark.

    Raises:
        CorpusError: It is not text, is not UTF-8, or contains only white space.
    """
    text = _decoded(content.raw, content.name)
    if not text.strip():
        raise CorpusError(f"{content.name} is empty: give a file with text.")
    return text


def regular_files(folder: Path) -> list[Path]:
    """Return the files in a folder and in the folders below it, sorted, without hidden ones.

    Raises:
        CorpusError: The folder cannot be read.
    """
    found = []
    try:
        for path in sorted(folder.iterdir()):
            if path.name.startswith("."):
                continue
            mode = path.stat().st_mode if path.exists() else 0
            if stat.S_ISDIR(mode) and not path.is_symlink():
                found += regular_files(path)
            elif stat.S_ISREG(mode):
                found.append(path)
    except OSError as error:
        raise CorpusError(f"{error.filename} cannot be read ({error.strerror}): check its permissions.") from error
    return found


@lru_cache(maxsize=1)
def _piped(stream: TextIO) -> bytes:
    """Return all bytes of a stream, which can be read only once."""
    try:
        return stream.buffer.read()
    except OSError as error:
        raise CorpusError(f"standard input cannot be read ({error.strerror}): pipe a text into it.") from error


def _decompressed(raw: bytes, name: str) -> bytes:
    for magic, (kind, decompress) in _DECOMPRESSORS.items():
        if raw.startswith(magic):
            try:
                return decompress(raw)
            except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError) as error:
                raise CorpusError(
                    f"{name} is a damaged {kind} file ({error}): compress or copy it again, it may have been cut off."
                ) from error
    return raw


def _decoded(raw: bytes, name: str) -> str:
    for magic, (what, remedy) in _FOREIGN_STARTS.items():
        if raw.startswith(magic):
            raise CorpusError(f"{name} is {what}: {remedy}.")
    if raw[_TAR] == b"ustar":
        raise CorpusError(f"{name} is a tar archive: {_UNPACK}.")
    encoding = next((known for mark, known in _BOMS.items() if raw.startswith(mark)), "utf-8")
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError as error:
        if encoding not in ("utf-8", "utf-8-sig"):
            raise CorpusError(
                f"{name} is damaged {encoding.upper()} text (offset {error.start}): convert it to UTF-8."
            ) from None
        raise CorpusError(
            f"{name} is not UTF-8 text (byte {raw[error.start]:#04x} at offset {error.start}): {_conversion(raw)}."
        ) from None
    if 10 * text.count("\0") > len(text):
        raise CorpusError(f"{name} is not UTF-8 text (too many bytes are zero): {_conversion(raw)}.")
    if encoding in ("utf-16", "utf-32") and not _is_words(text):
        raise CorpusError(f"{name} is not UTF-8 text (it begins as {encoding.upper()} does): {_BINARY}.")
    return text


def _is_words(text: str) -> bool:
    """Return whether nearly all of the first characters are such as a text has; the others are in binary files."""
    start = text[:_SAMPLE].removeprefix("\ufeff")
    odd = sum(
        character == "\ufeff" or (unicodedata.category(character) in _NO_WORDS and not character.isspace())
        for character in start
    )
    return 100 * odd <= len(start)


def _conversion(raw: bytes) -> str:
    """Return what to do with bytes that are not UTF-8, by what they look like."""
    zeros = raw.count(0)
    if 10 * zeros > len(raw):
        low, high = raw[::2].count(0), raw[1::2].count(0)
        if 10 * min(low, high) < max(low, high) and 4 * max(low, high) > len(raw):
            wide = "UTF-16LE" if high > low else "UTF-16BE"
            return f"it looks like {wide}; convert it (iconv -f {wide} -t UTF-8)"
        return _BINARY
    control = sum(raw.count(byte) for byte in range(32) if byte not in b"\t\n\v\f\r\x1b")
    if 20 * control > len(raw) or zeros:
        return _BINARY
    if sum(byte > 127 for byte in raw) < _FEW * len(raw):
        return "it may be Latin-1 (Windows-1252); convert it to UTF-8 (iconv -f WINDOWS-1252 -t UTF-8)"
    return "convert it to UTF-8 from the encoding that it was written in (iconv -f ENCODING -t UTF-8)"
