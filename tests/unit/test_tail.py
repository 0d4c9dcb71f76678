"""What is kept of a log for those who follow it."""

from core.log import Entry
from core.tail import RING, RING_BYTES, Following


def entries(count: int, size: int, first: int = 1) -> list[Entry]:
    return [Entry(1, "s", n, "t", "x" * size, "me", position=n) for n in range(first, first + count)]


def test_no_more_than_so_many_entries_are_kept() -> None:
    log = Following(1)
    log.keep(entries(RING, 1))
    log.keep(entries(10, 1, RING + 1))
    assert [log.ring[0].position, log.ring[-1].position] == [11, RING + 10]
    assert log.ring_bytes == RING


def test_no_more_than_so_many_bytes_are_kept_and_the_newest_stay() -> None:
    log = Following(1)
    for number in range(1, 41):
        log.keep(entries(1, 1 << 20, number))
    assert [entry.position for entry in log.ring] == list(range(25, 41))
    assert log.ring_bytes == RING_BYTES
    log.keep(entries(1, RING_BYTES + 1, 41))
    assert (list(log.ring), log.ring_bytes) == ([], 0)


def test_nothing_is_kept_once_it_is_forgotten() -> None:
    log = Following(1)
    log.keep(entries(3, 10))
    log.forget()
    assert (list(log.ring), log.ring_bytes) == ([], 0)
