"""YAML files of options, read strictly: whatever is wrong with one is told in one line, with its place."""

from __future__ import annotations

import reprlib
from typing import Any

import yaml

from dogmed.errors import ConfigError

_BAD_SCALAR = (ValueError, AttributeError, LookupError, ArithmeticError)  # what PyYAML lets through
_SHORT = reprlib.Repr()
_SHORT.maxlevel = 2
_SHORT.maxstring = _SHORT.maxlong = _SHORT.maxother = 80


class _Loader(yaml.SafeLoader):
    """YAML's safe loader; a key given twice, and a value that is not of its tag, are errors."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if not key.tag.endswith((":str", ":merge")):
                raise _problem("the name of an option must be a word", key)
            if key.value in seen:
                raise _problem(f"{shown(key.value)} is given twice", key)
            seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except _BAD_SCALAR:
            kind = node.tag.rpartition(":")[2]
            raise _problem(f"{shown(node.value)} is not a valid {kind}", node) from None


def parse_yaml(text: str, where: str) -> dict[str, Any]:
    """Read options from YAML; nothing at all is no options.

    Args:
        text: of the file.
        where: what the message calls it.

    Raises:
        ConfigError: not YAML, not a mapping, a key given twice, or a value that is not of its tag.
    """
    try:
        values = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" at line {mark.line + 1}" if mark else ""
        problem = " ".join(str(getattr(error, "problem", None) or error).split())
        raise ConfigError(f"{where}: not valid YAML{line}: {problem}") from None
    except RecursionError:
        raise ConfigError(f"{where}: not valid YAML: nested too deeply") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(
            f"{where}: expected 'option: value' lines, found a {type(values).__name__}"
        )
    return values


def shown(value: Any) -> str:
    """Give a value as it stands in a message: short, whatever it is."""
    try:
        return _SHORT.repr(value)
    except ValueError:  # Python prints no integer of more than 4300 digits
        return "a huge number"


def _problem(what: str, node: yaml.Node) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=what, problem_mark=node.start_mark)
