"""Damage to bytes, to text and to nested data, by chance."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from copy import deepcopy
from random import Random
from typing import Any

from damage import WRONG

BLOCK = 64
WORDS_OF_FOUR = (
    b"\0\0\0\0",
    b"\xff\xff\xff\xff",
    b"\xff\xff\xff\x7f",
    b"\0\0\0\x80",
    b"\x7f\xff\xff\xff",
    b"\0\0\x80\x7f",
)
"""Zero, the greatest and the least numbers of 32 bits, either way around, and an infinite one."""
NASTY = (
    *("NaN", "nan", "inf", "-inf", "-1", "0", "-0.0", "1e309", "1e-400", "1e308", "0.5", "3", str(10**30), "9" * 5000),
    *(
        "",
        " ",
        "\t",
        "\0",
        "\x1b[31m",
        "\x07",
        "\r",
        "\u2028",
        "\u202e",
        "\ufeff",
        "\ud800",
        "\U0001f44b",
        "٣",
        "²",
        "½",
    ),
    *(
        "x" * 300,
        "x" * 70_000,
        "[" * 3000,
        "{" * 3000,
        '{"a":' * 3000,
        "- " * 3000,
        "(" * 200,
        "<a>" * 3000,
        "../../none",
    ),
    *("&a [*a, *a]", "*a", "<<: *a", "<<: [1]", "!!python/object:os.system", "!!binary aGk=", "!!set {a}", "!!float x"),
    *(
        "2024-02-30",
        "2024-01-01 25:00:00",
        "0x10",
        "0o17",
        "0b2",
        "1_000",
        "1:30:00",
        "~",
        "null",
        "true",
        "no",
        "=",
        "? a",
    ),
    *(
        "/none",
        ".",
        "..",
        "~root/x",
        "~nobody/x",
        "/dev/null",
        "/etc/passwd",
        "a\nb",
        "%s",
        "{0}",
        "${HOME}",
        "-",
        "--",
        "#",
        ";",
    ),
    *(
        "'",
        '"',
        "`",
        "\\",
        "&amp;",
        "&#0;",
        "&x;",
        "<!DOCTYPE a [<!ENTITY x 'y'>]>",
        "]]>",
        "<?xml version='9'?>",
        ",",
        ":",
    ),
)
"""Words that readers of numbers, names, paths, YAML, JSON and XML stumble over."""
TOKEN = re.compile(r"[\w.+-]+|\s+|[^\w\s]")
DIGITS = re.compile(rb"\d+")
ENCODINGS = ("utf-8-sig", "utf-16", "latin-1", "utf-32", "cp037")

Way = Callable[[bytearray, Random], None]


def flip(content: bytearray, chance: Random) -> None:
    """Change a byte."""
    content[chance.randrange(len(content))] ^= chance.randrange(1, 256)


def flip_late(content: bytearray, chance: Random) -> None:
    """Damage the directory at the end of a zip file, which says where everything is."""
    begin = max(content.find(b"PK\1\2"), 0)
    content[chance.randrange(begin, len(content))] ^= chance.randrange(1, 256)


def flip_header(content: bytearray, chance: Random) -> None:
    """Damage the header before one of the members of a zip file."""
    places = [found.start() for found in re.finditer(b"PK\3\4", content)]
    begin = chance.choice(places or [0])
    content[min(begin + chance.randrange(60), len(content) - 1)] ^= chance.randrange(1, 256)


def cut(content: bytearray, chance: Random) -> None:
    """Remove the end."""
    del content[chance.randrange(len(content)) :]


def cut_out(content: bytearray, chance: Random) -> None:
    """Remove a part."""
    begin = chance.randrange(len(content))
    del content[begin : begin + chance.randrange(1, 4 * BLOCK)]


def zero(content: bytearray, chance: Random) -> None:
    """Overwrite blocks with zeros."""
    begin = chance.randrange(len(content))
    part = content[begin : begin + BLOCK * chance.randrange(1, 8)]
    content[begin : begin + len(part)] = bytes(len(part))


def swap(content: bytearray, chance: Random) -> None:
    """Exchange two blocks."""
    size = min(BLOCK * chance.randrange(1, 8), max(1, len(content) // 3))
    if len(content) < 2 * size:
        return
    one, other = sorted(chance.sample(range(len(content) // size), 2))
    first, second = slice(one * size, (one + 1) * size), slice(other * size, (other + 1) * size)
    content[first], content[second] = content[second], content[first]


def insert(content: bytearray, chance: Random) -> None:
    """Insert bytes of chance."""
    begin = chance.randrange(len(content) + 1)
    content[begin:begin] = chance.randbytes(chance.randrange(1, BLOCK))


def repeat(content: bytearray, chance: Random) -> None:
    """Double a part."""
    begin = chance.randrange(len(content))
    content[begin:begin] = content[begin : begin + chance.randrange(1, 4 * BLOCK)]


def put_word(content: bytearray, chance: Random) -> None:
    """Overwrite four bytes with a number at the edge of what 32 bits hold."""
    begin = chance.randrange(len(content))
    content[begin : begin + 4] = chance.choice(WORDS_OF_FOUR)


def put_number(content: bytearray, chance: Random) -> None:
    """Put another number in the place of decimal digits."""
    if found := list(DIGITS.finditer(content)):
        one = chance.choice(found)
        content[one.start() : one.end()] = chance.choice(
            (b"0", b"-1", b"99999999999", b"1e309", b"2147483648", b"65536")
        )


DAMAGE: tuple[Way, ...] = (flip, flip_late, flip_header, cut, cut_out, zero, swap)
"""What happens to files on disks and in transfers."""
WAYS: tuple[Way, ...] = (flip, flip, cut, cut_out, zero, swap, insert, repeat, put_word, put_word, put_number)


def damage_bytes(content: bytes, chance: Random, others: Sequence[bytes] = (), ways: Sequence[Way] = WAYS) -> bytes:
    """Return a content damaged one to four times, or the begin of it with the end of another."""
    if others and chance.random() < 0.1:
        other = chance.choice(others)
        return content[: chance.randrange(len(content) + 1)] + other[chance.randrange(len(other) + 1) :]
    damaged = bytearray(content)
    for _ in range(chance.choice((1, 1, 2, 4))):
        if damaged:
            chance.choice(ways)(damaged, chance)
    return bytes(damaged)


def damage_text(text: str, chance: Random) -> bytes:
    """Return a text with one to three words replaced, added, removed, or lines moved, perhaps in another encoding."""
    if chance.random() < 0.15:
        return damage_bytes(text.encode(), chance)
    tokens = TOKEN.findall(text) or [""]
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        place = chance.randrange(len(tokens))
        kind = chance.random()
        if kind < 0.55:
            tokens[place] = chance.choice(NASTY)
        elif kind < 0.65:
            tokens.insert(place, chance.choice(NASTY))
        elif kind < 0.75:
            del tokens[place]
            tokens = tokens or [""]
        elif kind < 0.85:
            tokens[place] = chance.choice(tokens)
        else:
            part = tokens[place : place + chance.randrange(1, 20)]
            tokens[place:place] = part * chance.choice((1, 1, 30))
    return encode("".join(tokens), chance)


def encode(text: str, chance: Random) -> bytes:
    """Return a text as UTF-8, now and then in another encoding."""
    if chance.random() < 0.05:
        return text.encode(chance.choice(ENCODINGS), "replace")
    return text.encode("utf-8", "surrogatepass")


def damage_nested(whole: Any, chance: Random, more: Sequence[Any] = ()) -> Any:
    """Return a copy of nested data with one to three values replaced, removed, doubled or renamed."""
    copy = deepcopy(whole)
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        places = list(_list_places(copy))
        if not places:
            return chance.choice(WRONG)
        inside, key = chance.choice(places)
        kind = chance.random()
        if kind < 0.6:
            inside[key] = deepcopy(chance.choice((*WRONG, *NASTY, *more)))
        elif kind < 0.75:
            del inside[key]
        elif kind < 0.9:
            inside[key] = deepcopy(chance.choice(places)[0])
        elif isinstance(inside, dict):
            inside[chance.choice(NASTY)] = inside.pop(key)
        else:
            inside.append(deepcopy(inside[key]))
    return copy


def _list_places(value: Any) -> Any:
    """Yield each container with each of its keys, from the outside in; of long lists the first and the last."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys if len(keys) < 60 else (*keys[:3], *keys[-3:]):
        yield value, key
        yield from _list_places(value[key])


def damage_json(text: str, chance: Random) -> bytes:
    """Return JSON with other values in it, or damaged as a text."""
    if chance.random() < 0.35:
        return damage_text(text, chance)
    return encode(json.dumps(damage_nested(json.loads(text), chance), ensure_ascii=chance.random() < 0.5), chance)
