"""YAML text to values. Neither depth, nor aliases, nor long numbers make it cost more than its length."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import yaml

from yolo_prune.limits import DEEPEST, MOST_YAML_VALUES, is_bounded

LONGEST_NUMBER = 400
"""Characters of a number; a float has at most 309 digits before its point."""
MOST_MERGED = 16
"""Mappings that a << merges: each may hold what others merge, so that more of them multiply."""


class Located(dict[Any, Any]):
    """A mapping with the line number of each key in its file."""

    lines: Mapping[Any, int] = MappingProxyType({})


class _Bounded(yaml.SafeLoader):
    """YAML as other tools read it, with limits."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._count = self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self._count, self._depth = self._count + 1, self._depth + 1
        if self._depth > DEEPEST:
            self._refuse(f"found values nested more than {DEEPEST} deep", self._get_mark())
        if self._count > MOST_YAML_VALUES:
            self._refuse(f"found more than {MOST_YAML_VALUES:,} values", self._get_mark())
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        merged = [value for key, value in node.value if key.tag == "tag:yaml.org,2002:merge"]
        if sum(len(one.value) if isinstance(one, yaml.SequenceNode) else 1 for one in merged) > MOST_MERGED:
            self._refuse(f"found more than {MOST_MERGED} mappings to merge", node.start_mark)
        super().flatten_mapping(node)
        if len(node.value) > MOST_YAML_VALUES:
            self._refuse(f"found more than {MOST_YAML_VALUES:,} values", node.start_mark)

    def construct_number(self, node: yaml.ScalarNode) -> int | float:
        if len(node.value) > LONGEST_NUMBER:
            self._refuse(f"found a number of more than {LONGEST_NUMBER} characters", node.start_mark)
        is_whole = node.tag == "tag:yaml.org,2002:int"
        number: int | float = (self.construct_yaml_int if is_whole else self.construct_yaml_float)(node)
        return number

    def _get_mark(self) -> yaml.error.Mark:
        return self.peek_event().start_mark  # type: ignore[no-untyped-call, no-any-return]  # PyYAML states no type

    def _refuse(self, problem: str, mark: yaml.error.Mark) -> None:
        raise yaml.constructor.ConstructorError(problem=problem, problem_mark=mark)


class _Loader(_Bounded):
    """YAML with the numbers of YAML 1.2, such as 1e-3, and with the lines of keys."""


def _make_located(loader: _Loader, node: yaml.MappingNode) -> Located:
    seen: set[Any] = set()
    for key, _ in node.value:
        name = (key.tag, key.value) if isinstance(key, yaml.ScalarNode) else None
        if name in seen:
            raise yaml.constructor.ConstructorError(
                problem=f"found duplicate key {key.value}", problem_mark=key.start_mark
            )
        seen |= {name} - {None}
    loader.flatten_mapping(node)
    made = Located(loader.construct_mapping(node, deep=True))
    made.lines = {loader.construct_object(key): key.start_mark.line + 1 for key, _ in node.value}
    return made


for _kind in ("int", "float"):
    _Bounded.add_constructor(f"tag:yaml.org,2002:{_kind}", _Bounded.construct_number)
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _Bounded.construct_number)
_Loader.add_constructor("tag:yaml.org,2002:map", _make_located)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d[\d_]*)(\.\d*)?[eE][-+]?\d+"), list("-+0123456789")
)


def parse_yaml(text: str) -> Any:
    """Parse one YAML value; mappings are `Located`, no key may be repeated, and 1e-3 is a number.

    Raises:
        yaml.YAMLError: it is not YAML, or is nested too deep or expands too far.
    """
    return _parse(text, _Loader)


def parse_plain_yaml(text: str) -> Any:
    """Parse one YAML value as other tools do, in YAML 1.1.

    Raises:
        yaml.YAMLError: it is not YAML, or is nested too deep or expands too far.
    """
    return _parse(text, _Bounded)


def _parse(text: str, loader: type[_Bounded]) -> Any:
    try:
        value = yaml.load(text, loader)
    except ValueError as error:  # such as a date that does not exist
        raise yaml.YAMLError(str(error)) from error
    except (LookupError, TypeError, AttributeError, ArithmeticError) as error:
        raise yaml.YAMLError("found a value that is not of its tag") from error
    if not is_bounded(value, MOST_YAML_VALUES):
        raise yaml.YAMLError(f"its aliases expand to more than {MOST_YAML_VALUES:,} values, or to themselves")
    return value
