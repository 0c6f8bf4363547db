"""Names and patterns of topics, against a reference that tries every way."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pyzmp.protocol.topics import LONGEST, Pattern, check_topic_name


def matches(pattern: str, name: str) -> bool:
    """By the rule alone: whether the levels match, whatever the ``**`` stand for."""
    return _levels(pattern.split("/"), name.split("/"))


def _levels(wanted: list[str], levels: list[str]) -> bool:
    if not wanted:
        return not levels
    if wanted[0] == "**":
        return any(_levels(wanted[1:], levels[at:]) for at in range(len(levels) + 1))
    return bool(levels) and _letters(wanted[0], levels[0]) and _levels(wanted[1:], levels[1:])


def _letters(wanted: str, level: str) -> bool:
    if not wanted:
        return not level
    if wanted[0] == "*":
        return any(_letters(wanted[1:], level[at:]) for at in range(len(level) + 1))
    return level[:1] == wanted[0] and _letters(wanted[1:], level[1:])


LEVELS = st.text("ab", min_size=1, max_size=4)
NAMES = st.lists(LEVELS, min_size=1, max_size=5).map("/".join)
PATTERNS = st.lists(st.just("**") | st.text("ab*", min_size=1, max_size=5).filter(lambda level: "**" not in level),
                    min_size=1, max_size=5).map("/".join)


@given(PATTERNS, NAMES)
@example("a/**", "a")
@example("**/a/**/a", "a/a")
@example("**/a/**/a", "a")
@example("a*a", "a")
@example("a*ab*b", "aabb")
@example("*a*/**/b*", "ba/b")
def test_a_pattern_matches_as_the_rule_says(pattern: str, name: str) -> None:
    assert Pattern(pattern).matches(name) == matches(pattern, name)


@st.composite
def loosened(draw: st.DrawFn) -> tuple[str, str]:
    """A name, and a pattern made of it, which matches."""
    levels = draw(NAMES).split("/")
    made: list[str] = []
    for level in levels:
        start, end = sorted(draw(st.tuples(*[st.integers(0, len(level))] * 2)))
        starred = f"{level[:start]}*{level[end:]}"
        made += draw(st.sampled_from([[level], [starred], ["**"], ["**", level], [level, "**"], ["*", "**"]]))
    return "/".join(made), "/".join(levels)


@given(loosened())
def test_a_name_matches_what_was_made_looser_of_it(made: tuple[str, str]) -> None:
    pattern, name = made
    assert Pattern(pattern).matches(name)
    assert matches(pattern, name)


@given(NAMES, NAMES)
def test_a_plain_name_matches_itself_only(one: str, other: str) -> None:
    pattern = Pattern(one)
    assert pattern.plain
    assert pattern.matches(one)
    assert pattern.matches(other) == (one == other)


@pytest.mark.parametrize(("pattern", "selected", "others"), [
    ("sensors/*", ["sensors/a", "sensors/b.c"], ["sensors", "sensors/a/b", "sensors2/a", "other/a"]),
    ("sensors/**", ["sensors", "sensors/a", "sensors/a/b"], ["sensors2", "sensor", "other/sensors/a"]),
    ("**/reading", ["reading", "a/reading", "a/b/reading"], ["a/readings", "a/xreading", "a/reading/b"]),
    ("sens*", ["sens", "sensors"], ["sensors/a", "asens"]),
    ("a/**/z", ["a/z", "a/b/z", "a/b/c/z"], ["a", "z", "a/bz", "az"]),
    ("**", ["a", "a/b"], []), ("*", ["a"], ["a/b"]), ("*/**", ["a", "a/b"], []),
    ("kitchen", ["kitchen"], ["kitchen/a", "kitchen2", "kitche"]),
])
def test_patterns_select_by_levels(pattern: str, selected: list[str], others: list[str]) -> None:
    assert [name for name in selected + others if Pattern(pattern).matches(name)] == selected


def test_a_pattern_is_a_value() -> None:
    assert Pattern("a/*") == Pattern("a/*") != Pattern("a/**")
    assert len({Pattern("a/*"), Pattern("a/*")}) == 1
    assert repr(Pattern("a/*")) == "Pattern('a/*')"
    assert not Pattern("a/*").plain


@pytest.mark.parametrize(("wrong", "said"), [
    ("", "has 1 to 255 characters, got 0"), ("a" * 256, "has 1 to 255 characters, got 256"),
    ("/a", "a level without a name"), ("a/", "a level without a name"), ("a//b", "a level without a name"),
    ("a**", "is a level of its own"), ("**a/b", "is a level of its own"), ("***", "is a level of its own"),
])
def test_what_is_no_pattern_is_refused(wrong: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Pattern(wrong)


@pytest.mark.parametrize(("wrong", "said"), [
    ("", "has 1 to 255 characters"), ("a" * 256, "got 256"), ("/a", "without a name"), ("a//b", "without a name"),
    ("a/*", "is a pattern"), ("**", "is a pattern"), ("a b", "letters, digits"), ("a\n", "letters, digits"),
    ("a+b", "letters, digits"), ("a\x00", "letters, digits"),
])
def test_what_is_no_name_is_refused(wrong: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        check_topic_name(wrong)


@pytest.mark.parametrize("name", ["a", "house/alerts", "a.b-c_d/E/7", "größe/水", "a" * LONGEST])
def test_a_name_is_handed_back(name: str) -> None:
    assert check_topic_name(name) == name


@pytest.mark.parametrize("wrong", [None, 7, b"a", ["a"]])
def test_only_text_is_a_name(wrong: Any) -> None:
    for check in (check_topic_name, Pattern):
        with pytest.raises(TypeError, match="is a str, got"):
            check(wrong)


@pytest.mark.parametrize(("pattern", "name"), [
    ("*a" * 127, "a" * 254 + "b"), ("*a" * 127 + "*", "a" * 126 + "b" * 100),
    ("/".join(["**", "*a*"] * 36)[:LONGEST - 2] + "/b", "/".join("a" * 120) + "/b"),
    ("**/" + "/".join(["*a*b"] * 50), "/".join(["aaab"] * 49 + ["aaaa"])),
])
def test_no_pattern_takes_long(pattern: str, name: str) -> None:
    calls = 0

    def count(frame: Any, event: str, arg: Any) -> None:
        nonlocal calls
        calls += 1
    chosen, before = Pattern(pattern), sys.getprofile()
    sys.setprofile(count)
    try:
        chosen.matches(name)
    finally:
        sys.setprofile(before)
    assert calls < 500_000
