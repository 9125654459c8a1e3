"""Cuts a sequence into consecutive pieces by number and by bytes: shards, and the row groups in them."""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")


def cut(
    items: Iterable[Item], bytes_of: Callable[[Item], int], *, most_items: int, most_bytes: int
) -> Iterator[list[Item]]:
    """Pieces in order, each of at most so many items and bytes, but of one item at least."""
    piece: list[Item] = []
    total = 0
    for item in items:
        size = bytes_of(item)
        if piece and (len(piece) == most_items or total + size > most_bytes):
            yield piece
            piece, total = [], 0
        piece.append(item)
        total += size
    if piece:
        yield piece
