"""Where a name is in a cluster."""

import pytest

from core.cluster import SLOTS, slot_of, slots


@pytest.mark.parametrize(
    ("name", "slot"),
    # The first is the check value of CRC16/XMODEM; the others are what CLUSTER KEYSLOT answers.
    [
        ("123456789", 0x31C3),
        ("foo", 12182),
        ("a{foo}b{c}", 12182),
        ("foo{}{bar}", 8363),
        ("foo{{bar}}zap", 4015),
    ],
)
def test_a_name_is_where_the_servers_have_it(name: str, slot: int) -> None:
    assert slot_of(name) == slot


def test_the_map_is_read() -> None:
    one, two = [b"10.0.0.1", 7000, b"id", []], [b"10.0.0.2", 7001, b"id", []]
    found = slots([[0, 99, one, two], [200, SLOTS - 1, two]])
    assert (found[0], found[99], found[100], found[199]) == (
        ("10.0.0.1", 7000),
        ("10.0.0.1", 7000),
        None,
        None,
    )
    assert (found[200], found[-1], len(found)) == (("10.0.0.2", 7001), ("10.0.0.2", 7001), SLOTS)
