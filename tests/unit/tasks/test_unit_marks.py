"""Marks outlive a process; turns let units run beside each other, or one alone."""

import threading
from concurrent.futures import ThreadPoolExecutor

from tasks.unit_marks import Mark, Turns, UnitMarks


def test_a_unit_that_begins_and_does_not_end_has_died() -> None:
    marks = UnitMarks()
    assert marks.look("a") == Mark(deaths=0, outcome="")
    marks.begin("a")
    marks.begin("b")
    marks.begin("a")
    assert (marks.look("a").deaths, marks.look("b").deaths) == (2, 1)


def test_a_unit_that_ended_is_innocent_and_keeps_what_it_said() -> None:
    marks = UnitMarks()
    marks.begin("a")
    marks.end("a", "said")
    assert marks.look("a") == Mark(deaths=0, outcome="said")


def test_two_shared_turns_overlap() -> None:
    turns, both = Turns(), threading.Barrier(2)

    def meet() -> bool:
        with turns.shared():
            both.wait(timeout=10)
        return True

    with ThreadPoolExecutor(2) as pool:
        assert [done.result(timeout=20) for done in (pool.submit(meet), pool.submit(meet))] == [True, True]


def test_nothing_runs_beside_one_that_is_alone() -> None:
    turns, log, begun = Turns(), list[str](), threading.Event()
    in_shared, leave_shared = threading.Event(), threading.Event()

    def first() -> None:
        with turns.shared():
            in_shared.set()
            assert leave_shared.wait(timeout=10)
            log.append("shared ends")

    def alone() -> None:
        begun.set()
        with turns.alone():
            log.append("alone begins")
            later_tried = threading.Event()

            def later() -> None:
                later_tried.set()
                with turns.shared():
                    log.append("later begins")

            thread = threading.Thread(target=later)
            thread.start()
            assert later_tried.wait(timeout=10)
            log.append("alone ends")
        thread.join(timeout=10)

    with ThreadPoolExecutor(2) as pool:
        started = pool.submit(first)
        assert in_shared.wait(timeout=10)
        waiting = pool.submit(alone)
        assert begun.wait(timeout=10)
        leave_shared.set()
        for done in (started, waiting):
            done.result(timeout=20)
    assert log == ["shared ends", "alone begins", "alone ends", "later begins"]


def test_many_that_want_to_be_alone_never_meet() -> None:
    turns, inside, most = Turns(), 0, 0

    def enter(_: int) -> None:
        nonlocal inside, most
        with turns.alone():
            inside += 1
            most = max(most, inside)
            inside -= 1

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(enter, range(200)))
    assert most == 1


def test_a_turn_ends_also_when_its_work_raises() -> None:
    turns = Turns()
    for turn in (turns.alone, turns.shared):
        try:
            with turn():
                raise ValueError
        except ValueError:
            pass
    with turns.alone():
        pass
