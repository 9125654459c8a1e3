"""Chains: resume takes the newest whole link of the same input and attempt, and old data is dropped, not receipts."""

import pytest

from mlcd_core.errors import CorruptRecordError
from mlcd_core.identity import fingerprint
from mlcd_core.specs import ClusterSpec
from mlcd_core.store import Chain, Files, StageFolder

INPUTS = {"embed": fingerprint("embed")}


def chain(files: Files, attempt: int = 1, inputs: dict[str, str] = INPUTS, last_number: int = 10) -> Chain:
    return Chain(StageFolder(files, ClusterSpec()), inputs, attempt, last_number)


def add(links: Chain, number: int) -> None:
    part = links.put("state", ".bin", f"state {number}".encode())
    links.append(number, [part], {"number": number})


def paths(links: Chain, kind: str) -> list[str]:
    return [info.path for info in links.folder.files.list(f"{links.folder.prefix}/{kind}")]


def test_newest_is_the_highest_number(files: Files) -> None:
    links = chain(files)
    assert links.newest() is None
    for number in (0, 3, 7):
        add(links, number)
    newest = chain(files).newest()
    assert newest is not None
    assert (newest.number, newest.state) == (7, {"number": 7})
    assert links.read(newest.parts[0]) == b"state 7"


def test_only_the_newest_two_keep_their_data_and_every_receipt_stays(files: Files) -> None:
    links = chain(files)
    for number in range(5):
        add(links, number)
    assert sorted(files.read(path) for path in paths(links, "data")) == [b"state 3", b"state 4"]
    assert len(paths(links, "units")) == 5


def test_data_shared_with_a_newer_link_is_kept(files: Files) -> None:
    links = chain(files)
    shared = links.put("shared", ".bin", b"the same in every link")
    for number in range(4):
        links.append(number, [shared, links.put("own", ".bin", str(number).encode())], {})
    assert links.read(shared) == b"the same in every link"


def test_data_that_a_chain_of_other_input_or_attempt_ends_with_is_kept(files: Files) -> None:
    finished = [chain(files, inputs={"embed": fingerprint("before")}), chain(files, attempt=2)]
    for links in finished:
        add(links, 0)
    later = chain(files)
    for number in range(4):
        add(later, number)  # link 0 has the bytes, and so the file, of theirs
    for links in finished:
        newest = links.newest()
        assert newest is not None
        assert links.read(newest.parts[0]) == b"state 0"


def test_data_that_an_older_link_left_behind_goes_with_the_next_link(files: Files) -> None:
    links = chain(files)
    for number in range(4):
        add(links, number)
    # a writer that was killed between its receipt and the clean-up
    left = links.put("state", ".bin", b"state 0")
    assert left.path in paths(links, "data")
    add(links, 4)
    assert left.path not in paths(links, "data")


def test_receipts_are_found_whatever_their_numbers_and_read_once(files: Files) -> None:
    links = chain(files, last_number=10**15)
    for number in (3, 7 * 10**14):
        add(links, number)
    assert links.newest() is not None
    for receipt in paths(links, "units"):
        files.put(receipt, b"not a receipt")
    newest = links.newest()
    assert newest is not None
    assert newest.number == 7 * 10**14
    with pytest.raises(CorruptRecordError):
        chain(files).newest()


def test_link_with_lost_data_is_passed_over(files: Files) -> None:
    links = chain(files)
    for number in (1, 2):
        add(links, number)
    newest = links.newest()
    assert newest is not None
    files.delete(newest.parts[0].path)
    before = links.newest()
    assert before is not None
    assert before.number == 1


def test_link_with_lost_data_is_made_again_as_another_attempt(files: Files) -> None:
    lost = chain(files)
    for number in (1, 2):
        add(lost, number)
    for path in paths(lost, "data"):
        files.delete(path)
    # what is made now differs, as it does on another number of workers
    again = chain(files)
    assert again.newest() is None
    for number in (1, 2, 3):
        link = again.append(number, [again.put("state", ".bin", f"again {number}".encode())], {})
        newest = chain(files).newest()
        assert newest == link, "a link made again is not dropped for lost ones with higher numbers"
        assert again.read(link.parts[0]) == f"again {number}".encode()
    assert [link.number for link in again.links()] == [1, 1, 2, 2, 3]


def test_other_inputs_and_attempts_do_not_see_each_other(files: Files) -> None:
    add(chain(files), 5)
    assert chain(files, attempt=2).newest() is None
    assert chain(files, inputs={"embed": fingerprint("other")}).newest() is None


def test_second_writer_of_a_link_gets_the_first(files: Files) -> None:
    links = chain(files)
    first = links.append(1, [links.put("state", ".bin", b"first")], {})
    second = chain(files).append(1, [links.put("state", ".bin", b"second")], {})
    assert second.write_id == first.write_id
    assert links.read(second.parts[0]) == b"first"


def test_changed_bytes_are_found_before_use(files: Files) -> None:
    links = chain(files)
    part = links.put("state", ".bin", b"true")
    files.put(part.path, b"tru_")
    with pytest.raises(CorruptRecordError, match="sha256"):
        links.read(part)
