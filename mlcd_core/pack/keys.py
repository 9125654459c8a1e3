"""Keys of rows: text that names an image, unique in a pack, the same on every run."""

import os
from collections import Counter
from collections.abc import Iterable, Sequence

from mlcd_core.pack.scan import suffix_of


def unique_keys(names: Sequence[str]) -> list[str]:
    """One key per file name, in order: the name without its suffix, or all of it where two names share that."""
    texts = [text_of(name) for name in names]
    keys = [text.removesuffix(text[len(text) - len(suffix_of(text)) :]) for text in texts]
    # the whole name a.jpg may be what a.jpg.png is without its suffix, so this may take more than one round
    while clashes := {i for i in _repeated(keys) if keys[i] != texts[i]}:
        for i in clashes:
            keys[i] = texts[i]
    return numbered(keys)


def numbered(keys: Sequence[str]) -> list[str]:
    """The keys, the second of equal ones with ``#2`` behind it, and so on."""
    taken = set(keys)
    if len(taken) == len(keys):
        return list(keys)
    seen: Counter[str] = Counter()
    unique: list[str] = []
    for key in keys:
        seen[key] += 1
        name = key
        if seen[key] > 1:
            while (name := f"{key}#{seen[key]}") in taken:
                seen[key] += 1
            taken.add(name)
        unique.append(name)
    return unique


def text_of(name: str) -> str:
    """A file name as text that can be stored: bytes of it that are not UTF-8 become ``\\xe9`` and the like."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return os.fsencode(name).decode("utf-8", "backslashreplace")
    return name


def _repeated(keys: Iterable[str]) -> list[int]:
    counts = Counter(keys)
    return [i for i, key in enumerate(keys) if counts[key] > 1] if len(counts) < counts.total() else []
