"""A cache of task scores, with one JSON file per model and question."""

import json
import os
import tempfile
from hashlib import blake2b
from pathlib import Path
from typing import Any

from basis_sharing.errors import OutputError, ResultError
from basis_sharing.results.tasks import CachedScore, TaskScore
from basis_sharing.run.files import check_files, write_file


def default_folder() -> Path:
    """Return the default cache folder: ``basis-sharing/tasks`` in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "basis-sharing" / "tasks"


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Return a hash of all files of a saved tokenizer, 32 hexadecimal digits."""
    digest = blake2b(digest_size=16)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        for file in sorted(Path(folder).iterdir()):
            digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()


def question_key(*parts: str | int | None) -> str:
    """Return a hash of the parts that a score depends on, 32 hexadecimal digits."""
    return blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()


class ScoreCache:
    """The cached scores of one model.

    Args:
        folder: Folder with the scores of all models; it is created when a score is saved.
        model_fingerprint: Fingerprint of the model.

    Raises:
        OutputError: The folder cannot be written to; checked here, before the scoring.
    """

    def __init__(self, folder: Path, model_fingerprint: str) -> None:
        self._folder = folder / model_fingerprint
        try:
            check_files([self._folder / "score.json"], overwrite=True)
        except OutputError:
            raise OutputError(
                f"scores cannot be kept in {folder}: pass --no-cache, or name another cache folder in XDG_CACHE_HOME."
            ) from None

    def load(self, task: str, key: str) -> tuple[TaskScore | None, tuple[str, ...]]:
        """Return a cached score, or None, and a note if its file is damaged.

        Args:
            task: Name of the task.
            key: Hash of what the score depends on, from :func:`question_key`.
        """
        file = self._file(task, key)
        if not file.exists():
            return None, ()
        try:
            cached = CachedScore.read(file)
        except ResultError as error:
            return None, (f"{task}: a kept score is measured again, its file cannot be used ({error})",)
        if cached.key != key or cached.score.task != task:
            return None, (f"{task}: a kept score is measured again, {file} holds that of another question.",)
        return cached.score, ()

    def save(self, key: str, score: TaskScore) -> None:
        """Save a score in the cache.

        Raises:
            OutputError: The disk is full or the folder cannot be written to.
        """
        write_file(self._file(score.task, key), CachedScore(key=key, score=score).write)

    def _file(self, task: str, key: str) -> Path:
        return self._folder / f"{task.replace(os.sep, '_')}-{key[:16]}.json"
