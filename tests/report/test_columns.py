"""The drawer of tables: alignment, cells of several lines, folding, escapes."""

from __future__ import annotations

import pytest

from kproxylat.report.columns import draw_table, write_digits


def test_numbers_are_right_aligned_below_a_rule() -> None:
    text = draw_table(
        "cost, ns", ("place", "calls", "rules'\nshare"), [("nat", "7", "1%"), ("a\n  b", "1,234", "")], ("place",)
    )
    assert text.split("\n") == [
        "cost, ns",
        "",
        " place  calls  rules'",
        "                share",
        " ────────────────────",
        " nat        7      1%",
        " a      1,234",
        "   b",
    ]


@pytest.mark.parametrize(
    ("number", "digits", "text"),
    [
        (99.7, 2, "100"),
        (1386.2, 3, "1,390"),
        (12345678, 3, "12,300,000"),
        (37, 3, "37"),
        (0.14749, 3, "0.147"),
        (0, 3, "0"),
    ],
)
def test_a_number_with_few_digits_has_no_exponent(number: float, digits: int, text: str) -> None:
    assert write_digits(number, digits) == text


def test_a_table_without_title_begins_with_its_header() -> None:
    assert draw_table("", ("a",), []) == " a\n ─"


def test_a_wide_column_is_folded_to_80_columns() -> None:
    long = "one two three " * 10 + "x" * 90
    text = draw_table("", ("check", "found"), [("tracefs", long)], ("check", "found"), fold=1)
    assert max(map(len, text.split("\n"))) == 80
    assert "".join(text.split("\n")[2:]).replace(" ", "") == "tracefs" + long.replace(" ", "")


def test_the_first_column_is_folded_where_another_is_not_enough() -> None:
    """A live table would lose its last column, as a terminal cuts what is wider."""
    rows = [("default/dummy-service-19:http", "7.3", "12 (8.2 to 19)", "1,048,576", "1,048,576", "0.52")]
    header = ("Service or address", "a second", "% (95 % bounds)", "mean in ns", "p99, below", "CPU ms/s")
    lines = draw_table("", header, rows, header[:1], fold=2).split("\n")
    assert max(map(len, lines)) <= 80
    assert [line.split()[0] for line in lines[-2:]] == ["default/dummy-serv", "ice-19:http"]


def test_numbers_are_whole_even_if_the_table_is_too_wide() -> None:
    number = "1,234,567,890"
    assert draw_table("", ["Services"] + ["mode"] * 8, [["10"] + [number] * 8]).count(number) == 8


def test_escape_sequences_are_shown_before_widths_are_measured() -> None:
    lines = draw_table("", ("a", "b"), [("\x1b[2J", "1"), ("x", "22")], ("a",)).split("\n")
    assert lines[2:] == [r" \x1b[2J   1", " x        22"]
