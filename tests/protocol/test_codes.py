"""The numbers that stand in messages."""

from __future__ import annotations

from pyzmp.protocol.codes import Code, Flag


def numbers(kind: type) -> list[int]:
    return [number for name, number in vars(kind).items() if name.isupper()]


def test_every_code_has_a_number_of_its_own() -> None:
    assert sorted(numbers(Code)) == list(range(1, 10))


def test_every_flag_is_a_bit_of_its_own() -> None:
    assert sorted(numbers(Flag)) == [1, 2, 4]
