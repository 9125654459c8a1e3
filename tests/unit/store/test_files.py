"""What every store promises: objects appear whole or not at all, and a created name is never created again."""

import multiprocessing
import queue

from mlcd_core.store import FileInfo, Files, open_files

NAMES = 25


def test_absent_is_none(files: Files) -> None:
    assert files.read("a/b") is None
    assert files.map("a/b") is None
    files.delete("a/b")


def test_mapped_object_is_its_bytes_and_stays_when_the_object_goes(files: Files) -> None:
    files.put("a/b", b"content")
    mapped = files.map("a/b")
    assert mapped is not None
    assert not mapped.is_mutable
    files.delete("a/b")
    assert files.read("a/b") is None
    assert mapped.to_pybytes() == b"content"


def test_put_replaces_and_create_does_not(files: Files) -> None:
    files.put("x/data", b"one")
    files.put("x/data", b"two")
    assert files.read("x/data") == b"two"
    assert files.create("x/once", b"first")
    assert not files.create("x/once", b"second")
    assert files.read("x/once") == b"first"


def test_empty_objects_are_objects(files: Files) -> None:
    files.put("empty", b"")
    assert files.read("empty") == b""
    assert files.list("") == [FileInfo("empty", 0)]


def test_listing_names_every_object_below_a_folder_with_its_size(files: Files) -> None:
    for path, content in {"s/b": b"22", "s/a/c": b"333", "sb/d": b"4444", "s.e": b"55555"}.items():
        files.put(path, content)
    assert files.list("s") == [FileInfo("s/a/c", 3), FileInfo("s/b", 2)]
    assert files.list("nowhere") == []
    assert [info.path for info in files.list("")] == ["s.e", "s/a/c", "s/b", "sb/d"]


def test_folders_are_those_right_below(files: Files) -> None:
    for path in ("s/b/1", "s/a/x/2", "s/a/y/3", "s/4", "sb/d/5", "e/6"):
        files.put(path, b"")
    assert files.folders("s") == ["a", "b"]
    assert files.folders("") == ["e", "s", "sb"]
    assert files.folders("nowhere") == files.folders("s/4") == []


def test_what_another_writer_wrote_is_seen_at_once(files: Files, address: str) -> None:
    other = open_files(address)
    for content in (b"one", b"three"):
        other.put("s/a", content)
        assert files.read("s/a") == content
        assert files.list("s") == [FileInfo("s/a", len(content))]
    other.delete("s/a")
    assert files.read("s/a") is None
    assert files.list("s") == []


def test_names_may_hold_any_letter(files: Files) -> None:
    for path in ("with space/ä+b%20&c=d?e#f.json", "日本/[x]*"):
        files.put(path, path.encode())
        assert files.create(path, b"other") is False
        assert files.read(path) == path.encode()
        assert [info.path for info in files.list(path.partition("/")[0])] == [path]


def test_the_address_of_a_store_opens_it_again(files: Files, address: str) -> None:
    assert files.uri("") == address
    files.put("a/b", b"content")
    assert open_files(files.uri("a")).read("b") == b"content"
    assert open_files(address + "/").uri("a") == files.uri("a")


def _race(address: str, me: int, start: "multiprocessing.synchronize.Barrier", wins: "queue.Queue[int]") -> None:
    files = open_files(address)
    for name in range(NAMES):
        start.wait()
        if files.create(f"units/{name}", str(me).encode()):
            wins.put(name)


def test_one_winner_per_name_when_processes_race(address: str) -> None:
    context = multiprocessing.get_context("spawn")
    start, wins = context.Barrier(3), context.Queue()
    racers = [context.Process(target=_race, args=(address, me, start, wins)) for me in range(3)]
    for racer in racers:
        racer.start()
    won = sorted(wins.get(timeout=180) for _ in range(NAMES))
    for racer in racers:
        racer.join(timeout=180)
    assert won == list(range(NAMES))
    assert wins.empty()
