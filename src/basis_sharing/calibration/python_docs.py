"""Python's own documentation, which every machine has: a part to calibrate on, and a part held out for evaluation."""

from collections import Counter
from hashlib import blake2b

from basis_sharing.calibration.chats import DOCUMENT_SEPARATOR

_LONG_PARAGRAPH = 80


def python_docs(heldout: bool) -> str:
    """Return the documentation in ``pydoc_data``: the part to calibrate on, or the part held out for evaluation.

    Topics that share a paragraph with another one (some are chapters that contain others) are never held out, so that
    the two parts do not overlap. Of the other topics about every second one is held out, by a hash of its name: 24 of
    79 topics, an eighth of the text, and the same ones in Python 3.8 to 3.13.
    """
    from pydoc_data.topics import topics

    paragraphs = {name: _long_paragraphs(text) for name, text in topics.items()}
    uses = Counter(paragraph for own in paragraphs.values() for paragraph in own)
    part = [
        name
        for name in sorted(topics)
        if heldout == (all(uses[p] == 1 for p in paragraphs[name]) and _hash(name) % 2 == 0)
    ]
    # Leave out topics whose paragraphs all occur in longer topics (sections of a chapter).
    seen: set[str] = set()
    repeats = set()
    for name in sorted(part, key=lambda name: -len(topics[name])):
        if paragraphs[name] and paragraphs[name] <= seen:
            repeats.add(name)
        seen |= paragraphs[name]
    return DOCUMENT_SEPARATOR.join(topics[name].strip() for name in part if name not in repeats)


def _long_paragraphs(text: str) -> frozenset[str]:
    """Return the paragraphs that are too long to be equal by chance, with white space normalized."""
    paragraphs = (" ".join(paragraph.split()) for paragraph in text.split("\n\n"))
    return frozenset(paragraph for paragraph in paragraphs if len(paragraph) >= _LONG_PARAGRAPH)


def _hash(name: str) -> int:
    return blake2b(name.encode(), digest_size=8).digest()[0]
