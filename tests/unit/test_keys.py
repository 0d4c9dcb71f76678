"""The form of an API key."""

import re
import string

import pytest

from rbac import keys

KEY, KEY_ID = keys.new_key()
MADE = [keys.new_key() for _ in range(200)]
FIXED = "syr_0123456789ab_" + "0aZ9" * 8


def test_new_key_is_prefix_id_secret_and_check() -> None:
    assert re.fullmatch(rf"syr_{KEY_ID}_[0-9A-Za-z]{{32}}[0-9A-Za-z]{{6}}", KEY)
    assert re.fullmatch("[0-9a-z]{12}", KEY_ID)


def test_id_comes_back_from_the_key() -> None:
    assert [keys.id_of(key) for key, _ in MADE] == [key_id for _, key_id in MADE]


def test_no_two_keys_are_the_same() -> None:
    assert len({key for key, _ in MADE}) == len({key_id for _, key_id in MADE}) == 200


def test_check_is_crc_32_in_base_62() -> None:
    assert keys.check("123456789") == "3Jzrme"  # 0xcbf43926, the check value of CRC-32
    assert keys.check("") == "000000"
    assert string.digits + string.ascii_letters == keys.ALPHABET


def test_every_single_wrong_character_is_refused() -> None:
    typed = string.digits + string.ascii_letters + "_- é"
    wrong = [
        KEY[:place] + other + KEY[place + 1 :]
        for place in range(len(KEY))
        for other in typed
        if other != KEY[place]
    ]
    assert len(wrong) > 3000
    assert [key for key in wrong if keys.id_of(key) is not None] == []


def test_every_missing_or_doubled_character_is_refused() -> None:
    for place in range(len(KEY)):
        assert keys.id_of(KEY[:place] + KEY[place + 1 :]) is None
        assert keys.id_of(KEY[:place] + KEY[place] + KEY[place:]) is None


def test_every_two_swapped_neighbours_are_refused() -> None:
    key = FIXED + keys.check(FIXED)
    assert keys.id_of(key) == "0123456789ab"
    for place in range(len(key) - 1):
        swapped = key[:place] + key[place + 1] + key[place] + key[place + 2 :]
        assert swapped == key or keys.id_of(swapped) is None


@pytest.mark.parametrize(
    "key",
    ["", "syr_", "Bearer", KEY + "\n", " " + KEY, KEY.upper(), "a.b.c", "syr_\x00"],
    ids=["empty", "prefix", "word", "newline", "space", "upper case", "token", "nul"],
)
def test_what_is_no_key_has_no_id(key: str) -> None:
    assert keys.id_of(key) is None


def test_digest_is_an_hmac_of_the_whole_key_under_the_pepper() -> None:
    found = keys.digest("what do ya want for nothing?", "Jefe")  # RFC 4231, test case 2
    assert found == "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"


def test_digest_depends_on_the_pepper_and_on_every_part_of_the_key() -> None:
    digests = {
        keys.digest(KEY, "a"),
        keys.digest(KEY, "b"),
        keys.digest(KEY[:-1], "a"),
        keys.digest(KEY[1:], "a"),
    }
    assert len(digests) == 4
    assert keys.digest(KEY, "a") == keys.digest(KEY, "a")
