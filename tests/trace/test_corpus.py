"""Real texts against the JSON that the same bpftrace wrote: those in tests/dumps, and the corpus if it is there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from kproxylat.errors import LogError
from kproxylat.logs.reader import read_log
from kproxylat.trace.dump import parse_dump, read_prints
from tests.support import TESTS
from tests.support.corpus import CORPUS, MEASURED, flatten, outline, outline_print, read_json, read_keys, show

DUMPS = TESTS / "dumps"

EXCEPTIONS = {
    r"^(0\.11|0\.14|0\.17).*hist_suffix": "JSON: hist() of more than 32 bits has broken bounds; the text is clamped",
    r"^0\.11.*scalars:@(avg|stats)_neg": "JSON: negative averages are printed as unsigned",
    r"^(0\.11|0\.14).*zero:@z_.?hist": "JSON: nothing stands where the empty histogram should",
    r"types:@when|enums_structs:@p": "JSON: times and pointers are not quoted",
    r"types:@b$": "JSON: buf() is a list of numbers there",
    r"enums_structs:@(by_)?ee?(num)?$": "JSON: enums are numbers there, names in the text",
    r"printf_mix:@(names|word)": "JSON: broken UTF-8; the program says what the text says",
    r"string_values:@bytes": "JSON: broken UTF-8; here the bytes are kept as \\xNN",
    r"glued_values:@usym_by_n": "text: an address without a symbol looks like a pointer, which is an integer",
    r"printf_lookalikes:@(fake|fake_hist|x)$": "text: printf wrote what looks like maps",
    r"cat_file:@inside": "text: cat() wrote what looks like a map",
    r"string_values:@(multi|other)$": "text: the string's last line looks like a map",
    r"string_values:@looks_like_tuple": "text: the string looks like a tuple",
    r"^0\.11.*string_values:@looks_like_stats": "text: the string looks like stats; 0.11 has a blank line after both",
    r"tuples:@text": "text: the first string of the tuple holds a comma and a blank",
    r"scalars:@str_digits": "text: a string of digits looks like an integer",
}
"""Pattern on ``VERSION--PROGRAM:@MAP`` -> why text and JSON differ, or who is wrong."""


KEY_EXCEPTIONS = {
    r"^0\.(11|14|17|20|23).*keyed_int:@big_key": "text: unsigned keys beyond 63 bits have a sign, or are cut",
    r"printf_long:@k": "text: a string with a comma and a blank is the only key, which reads as two parts",
    r"^0\.2[347].*tuples:@tk$": "text: a key that is a tuple has no brackets from 0.23 on",
}
"""Pattern on ``VERSION--PROGRAM:@MAP`` -> why the keys of the text are not those that the program gives."""


def pairs() -> Iterator[tuple[str, Path, Path]]:
    """List text and JSON of each run: ``VERSION--PROGRAM`` and the two files."""
    for path in sorted(DUMPS.glob("*.json")):
        yield path.stem, path.with_suffix(".txt"), path
    for path in sorted(CORPUS.glob("*/*.json")):
        if path.with_suffix(".txt").exists() and path.name.split(".")[0] not in MEASURED:
            yield f"{path.parent.name}--{path.stem}", path.with_suffix(".txt"), path


def read(path: Path) -> str:
    return path.read_bytes().decode(errors="backslashreplace")


def differences(case: str, text: Path, reference: Path) -> Iterator[str]:
    """Name the maps whose last print differs between text and JSON."""
    prints = list(read_prints(read(text).removesuffix("\n").split("\n")))
    expected = {name: flatten(data) for name, data in read_json(read(reference)) if flatten(data)}
    parsed = {each.name: show(each) for each in prints}
    for name in sorted(expected.keys() | parsed.keys()):
        if expected.get(name) != parsed.get(name):
            yield f"{case}:@{name}"


def test_every_text_agrees_with_its_json() -> None:
    cases = list(pairs())
    assert len([each for each in cases if each[1].parent == DUMPS]) >= 20
    found = [each for case in cases for each in differences(*case)]
    reasons = {each: [why for pattern, why in EXCEPTIONS.items() if re.search(pattern, each)] for each in found}
    for why in EXCEPTIONS.values():
        named = [each for each in found if why in reasons[each]]
        print(f"{len(named):3} {why}: {', '.join(named[:3])}")
    print(f"{len(cases)} texts, {len(found)} named exceptions")
    assert [each for each in found if not reasons[each]] == []


@pytest.mark.skipif(not CORPUS.is_dir(), reason="the corpus is not beside the project")
def test_the_whole_corpus_is_there() -> None:
    assert len(list(pairs())) > 500


def outputs() -> list[Path]:
    return [path for kind in ("txt", "log", "tty") for root in (DUMPS, CORPUS) for path in root.rglob(f"*.{kind}")]


def test_every_print_is_found_in_order() -> None:
    known = re.compile("printf_lookalikes|cat_file|string_values|zero|types|enums_structs")
    for case, text, reference in pairs():
        if not known.search(case):
            names = [name for name, data in read_json(read(reference)) if flatten(data)]
            prints = read_prints(read(text).removesuffix("\n").split("\n"))
            assert [each.name for each in prints] == names, case


def test_every_output_is_read_as_a_log() -> None:
    """Logs and terminals hold the same maps as the plain output; what has no run says so."""
    for path in outputs():
        try:
            results = list(read_log(str(path)))
        except LogError as error:
            assert not re.search(r"^@\w+(\[.*\])?: ", read(path), re.M), error  # noqa: PT017
            continue
        plain = path.with_suffix(".txt")
        # printf_lookalikes prints "Attaching 9 probes...", which in a log begins another run
        if plain.exists() and path.stem not in MEASURED and "lookalikes" not in path.stem:
            assert results[-1].maps == parse_dump(read(plain)), path


def texts() -> Iterator[tuple[str, Path]]:
    """List the texts of the corpus: ``VERSION--PROGRAM`` and the file."""
    for path in sorted(CORPUS.glob("*/*.txt")):
        yield f"{path.parent.name}--{path.stem}", path


@pytest.mark.skipif(not CORPUS.is_dir(), reason="the corpus is not beside the project")
def test_keys_are_divided_as_the_program_gave_them() -> None:
    """The JSON joins the parts of a key by commas: only the program tells how many there are, and where they end."""
    checked, found = 0, []
    for case, path in texts():
        program = path.with_name(path.name.split(".")[0] + ".bt")
        keys = read_keys(read(program)) if program.exists() else {}
        for each in read_prints(read(path).removesuffix("\n").split("\n")):
            if each.name in keys:
                checked += 1
                wrong = {entry.key for entry in each.map.entries} - keys[each.name]
                found += [f"{case}:@{each.name}"] if wrong else []
    for pattern, why in KEY_EXCEPTIONS.items():
        print(f"{len([each for each in found if re.search(pattern, each)]):3} {why}")
    print(f"{checked} prints, {len(found)} named exceptions")
    assert [each for each in found if not any(re.search(pattern, each) for pattern in KEY_EXCEPTIONS)] == []
    assert checked > 500


@pytest.mark.skipif(not CORPUS.is_dir(), reason="the corpus is not beside the project")
def test_measured_texts_have_the_structure_of_their_json() -> None:
    """Another run's JSON has other values, but as many entries of the same kinds, and as many frames in each stack."""
    checked = 0
    for case, path in texts():
        reference = path.with_suffix(".json")
        if path.stem in MEASURED and reference.exists():
            expected = {name: outline(data) for name, data in read_json(read(reference)) if flatten(data)}
            prints = read_prints(read(path).removesuffix("\n").split("\n"))
            parsed = {each.name: outline_print(each) for each in prints}
            assert parsed == expected, case
            checked += len(expected)
    assert checked > 200
