"""Make targets whose cases are one damaged file of several sound ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from random import Random

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from fuzzing.case import Case, Run, Target
from fuzzing.command import run_command
from fuzzing.mutators import damage_bytes, damage_json, damage_text

Damage = Callable[[bytes, Random, Sequence[bytes]], bytes]
Words = str | tuple[str, ...]


def as_bytes(content: bytes, chance: Random, others: Sequence[bytes]) -> bytes:
    """Damage bytes."""
    return damage_bytes(content, chance, others)


def as_text(content: bytes, chance: Random, others: Sequence[bytes]) -> bytes:
    """Damage a text."""
    return damage_text(content.decode(), chance)


def as_json(content: bytes, chance: Random, others: Sequence[bytes]) -> bytes:
    """Damage JSON."""
    return damage_json(content.decode(), chance)


def split(words: Words) -> tuple[str, ...]:
    """Return the words of a command line."""
    return tuple(words.split()) if isinstance(words, str) else words


def make_target(
    name: str,
    files: Mapping[str, str],
    *words: Words,
    damage: Damage = as_bytes,
    copies: tuple[str, ...] = (),
    parts: tuple[str, ...] = ("data",),
    run: Run = run_command,
    texts: Callable[[str], SearchStrategy[str]] | None = None,
    stdin: bool = False,
) -> Target:
    """Return a target that damages one of some files.

    Args:
        files: the sound file below the base, by the path that the damaged one gets in the case's folder.
        words: command lines, one of which reads the file; `FILE` stands for its path.
        texts: draws texts from a grammar, given the sound text.
        stdin: the file comes from stdin as well.
    """
    lines = [split(one) for one in words] or [()]

    def build(path: str, line: Sequence[str], content: bytes) -> Case:
        named = tuple(word.replace("FILE", path) for word in line)
        return Case(named, {path: content}, copies, content if stdin else b"")

    def make(chance: Random, base: Path) -> Case:
        path, others = chance.choice(list(files)), [(base / one).read_bytes() for one in files.values()]
        return build(path, chance.choice(lines), damage((base / files[path]).read_bytes(), chance, others))

    def list_sound(base: Path) -> list[Case]:
        pairs = [(path, lines[0]) for path in files] + [(next(iter(files)), line) for line in lines[1:]]
        return [build(path, line, (base / files[path]).read_bytes()) for path, line in pairs]

    def draw(base: Path) -> SearchStrategy[Case]:
        assert texts is not None
        path = next(iter(files))
        contents = texts((base / files[path]).read_text()).map(lambda text: text.encode("utf-8", "surrogatepass"))
        return st.builds(partial(build, path), st.sampled_from(lines), contents)

    return Target(name, make, list_sound, run, draw if texts else None, parts)
