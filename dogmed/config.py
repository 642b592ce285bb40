"""Configuration: frozen dataclasses, filled by a shipped recipe < ``--config FILE`` < flags.

A configuration class is a plain frozen dataclass, ``@configclass``; each field is documented once, by the
string under it, and that string is also the flag's help. Values of a recipe live in its YAML file and
nowhere else. Everything is checked by pydantic before any work starts, and unknown keys are refused
with the nearest name. ``dogmed.flags`` turns the dataclass into flags.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar, cast, dataclass_transform, get_args, get_type_hints

import yaml

from dogmed.errors import ConfigError, nearest, reason
from dogmed.flags import (
    refuse_missing_flags,
    refuse_unknown_flags,
    run_tyro,
    suggest,
    take_config_flag,
    without_values,
)
from dogmed.yamlfile import parse_yaml, shown

T = TypeVar("T")
FLAGS = "flags"
"""Where values come from that were typed: they are called by their flags."""


@dataclass_transform(kw_only_default=True, frozen_default=True)
def configclass(cls: type[T]) -> type[T]:
    """Make ``cls`` a frozen, keyword-only dataclass, validated without unknown keys, NaN and inf."""
    cls.__pydantic_config__ = {"extra": "forbid", "allow_inf_nan": False}  # type: ignore[attr-defined]
    return dataclasses.dataclass(frozen=True, kw_only=True)(cls)


def recipe(name: str) -> dict[str, Any]:
    """Read a shipped recipe, for example ``recipe("finetune/default")``.

    A recipe states what differs from the one it ``extends``, of the same folder.

    Raises:
        ConfigError: there is no such recipe, or those it extends lead back to it.
    """
    result: dict[str, Any] = {}
    for values in reversed(_lineage(name).values()):
        result = merge(result, values)
    return result


def recipes(folder: str) -> list[str]:
    """List the shipped recipes of a folder (``"pretrain"``) by name."""
    files = resources.files("dogmed.configs").joinpath(folder).iterdir()
    return sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml"))


def base_values(argv: Sequence[str], default: str, *, choice: bool) -> dict[str, Any]:
    """The values that ``--config FILE`` and the flags of ``argv`` lie over: a shipped recipe's.

    A file may begin with ``extends: NAME``, as shipped recipes do. Without a choice that can only be
    what the values come from anyway. With one it is any recipe of the folder, and ``recipe``, in the
    file or as a flag, is the result's own name; without ``extends`` it is the recipe itself, unless the
    file leaves no value open, as a run's config.yaml.

    Args:
        argv: the flags.
        default: the recipe otherwise, with its folder (``"pretrain/imagenet50ep"``).
        choice: whether there is one; the values then have the name under ``recipe``.

    Raises:
        ConfigError: there is no recipe of that name, its name is to stand for other values, or the
            file cannot be read.
    """
    rest, file = take_config_flag(argv)
    given = {} if file is None else read_yaml(file)
    folder, _, usual = default.rpartition("/")
    extends, name = given.get("extends"), given.get("recipe")
    if not choice:
        known = [of_folder.rpartition("/")[2] for of_folder in _lineage(default)]
        if extends not in (None, *known):
            raise ConfigError(
                f"--config {file}: extends: expected {' or '.join(known)} here, got {shown(extends)}"
            )
        return recipe(default)
    for word, following in zip(rest, [*rest, ""][1:], strict=True):
        flag, equals, value = word.partition("=")
        if flag == "--recipe":
            name = value if equals else following
    known, base = recipes(folder), extends or name or usual
    whole = extends is None and flatten(given).keys() >= flatten(recipe(default)).keys()
    if base not in known and not whole:
        raise ConfigError(
            f"unknown recipe '{base}'{nearest(str(base), known)}; there are {', '.join(known)}; one of "
            "your own is a --config FILE with 'extends:' (one of these) and 'recipe:' (its name)"
        )
    if extends and name in known and name != extends:
        raise ConfigError(
            f"--config {file} extends {extends}, so its recipe cannot be called {name}, as another "
            "that is shipped: give it a name of its own"
        )
    return {"recipe": name or base, **recipe(f"{folder}/{base if base in known else usual}")}


def read_yaml(path: Path | str) -> dict[str, Any]:
    """Read a user's YAML file of options.

    Raises:
        ConfigError: the file is missing, is not YAML or is not a mapping.
    """
    try:
        text = Path(path).expanduser().read_text()
    except (OSError, UnicodeDecodeError, RuntimeError) as error:  # the last: no such user
        raise ConfigError(f"--config {path}: cannot be read ({reason(error)})") from None
    return parse_yaml(text, f"--config {path}")


def build(cls: type[T], values: Mapping[str, Any], *, where: str = "config") -> T:
    """Make a ``cls`` from nested plain values, checked and coerced; ``~`` in paths is the user's home.

    Raises:
        ConfigError: a key is unknown or missing, a value is not of its field's type or range, or there
            is no such user.
    """
    import pydantic

    _refuse_unknown(cls, values, where)
    try:
        checked = _adapter(cast(Any, cls)).validate_python(_settle_booleans(cls, values, where))
    except pydantic.ValidationError as error:
        problems = [
            f"{_place(_field_path(cls, d['loc']), where)}: {d['msg']}"
            + ("" if d["type"] == "missing" else f" (got {shown(d['input'])})")
            for d in error.errors()
        ]
        raise ConfigError(("" if where == FLAGS else f"{where}: ") + "; ".join(problems)) from None
    return _at_home(checked, where)


def parse(
    cls: type[T],
    argv: Sequence[str],
    *,
    prog: str,
    base: Mapping[str, Any] | None = None,
    summary: str = "",
) -> T:
    """Parse flags into a ``cls`` over the values of ``base`` and of ``--config FILE``.

    ``base`` holds the recipe's values. A field that has a value nowhere must be given as a flag.
    ``--help`` prints the flags and exits 0.

    Raises:
        ConfigError: an unknown flag (the nearest is named), a wrong value or a wrong key in the file.
    """
    argv, config_file = take_config_flag(argv)
    where = f"--config {config_file}" if config_file is not None else "defaults"
    values = dict(base or {})
    if config_file is not None:
        overrides = read_yaml(config_file)
        if base is not None:
            overrides.pop("extends", None)  # base_values has heeded it
        _refuse_unknown(cls, overrides, where)
        values = _settle_booleans(cls, merge(values, overrides), where)
    refuse_unknown_flags(flags(cls), argv)
    required = [name for name in _required(cls) if name not in values]
    if required:
        refuse_missing_flags([_as_flag(name) for name in required], argv, prog)
        default = without_values(cls, values, required)
    else:
        default = build(cls, values, where=where)
    parsed = run_tyro(cls, argv, default, prog, summary)
    return build(cls, dataclasses.asdict(cast(Any, parsed)), where=FLAGS)


def merge(low: Mapping[str, Any], high: Mapping[str, Any]) -> dict[str, Any]:
    """Merge two nested mappings; ``high`` wins, and dotted keys (``optim.lr``) reach into groups."""
    result = dict(low)
    for key, value in high.items():
        key, _, rest = str(key).partition(".")
        if rest:
            value = {rest: value}
        if isinstance(value, Mapping) and isinstance(result.get(key), Mapping):
            value = merge(result[key], value)
        result[key] = value
    return result


def to_dict(config: Any) -> dict[str, Any]:
    """Give a configuration as nested plain values, as YAML and JSON hold them."""
    return _plain(dataclasses.asdict(config))


def to_yaml(config: Any) -> str:
    """Write a configuration as YAML that ``--config`` reads back to an equal one."""
    return yaml.safe_dump(to_dict(config), sort_keys=False)


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Turn nested values into one level with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        nested = isinstance(value, Mapping)
        flat |= flatten(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return flat


def flags(cls: type) -> list[str]:
    """List the flags of a configuration class, dotted groups included."""
    return [_as_flag(name) for name in _leaves(cls)]


def _as_flag(name: str) -> str:
    return "--" + name.rstrip("_").replace("_", "-")  # of ``class_``, see ``flags.called``


def _lineage(name: str) -> dict[str, dict[str, Any]]:
    """What a shipped recipe itself states, then the one it extends, and so on, by name."""
    folder = name.rpartition("/")[0]
    chain: dict[str, dict[str, Any]] = {}
    while True:
        if name in chain:
            raise ConfigError(
                f"recipe {next(iter(chain))}: extends in a circle ({' -> '.join([*chain, name])})"
            )
        file = resources.files("dogmed.configs").joinpath(f"{name}.yaml")
        if not file.is_file():
            by = f", which recipe {list(chain)[-1]} extends," if chain else ""
            raise ConfigError(f"no recipe '{name}'{by} is shipped with dogmed")
        chain[name] = parse_yaml(file.read_text(), f"recipe {name}")
        parent = chain[name].pop("extends", None)
        if parent is None:
            return chain
        name = f"{folder}/{parent}" if folder else str(parent)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _at_home(value: Any, where: str) -> Any:
    """Expand ``~`` and ``~user`` in the paths of a configuration: no shell does so after ``=``."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value)]
        new = {name: _at_home(getattr(value, name), where) for name in names}
        return dataclasses.replace(value, **new)
    if isinstance(value, tuple):
        return tuple(_at_home(item, where) for item in value)
    if not isinstance(value, Path):
        return value
    try:
        return value.expanduser()
    except RuntimeError:
        raise ConfigError(f"{where}: {value}: there is no such user") from None


def _settle_booleans(
    cls: type, values: Mapping[str, Any], where: str, prefix: str = ""
) -> dict[str, Any]:
    """Read YAML's booleans as the words on and off where those are choices; elsewhere refuse them.

    YAML reads an unquoted ``off`` as false, and pydantic would take true for the number 1.
    """
    hints, groups, settled = get_type_hints(cls), _groups(cls), dict(values)
    for key, value in values.items():
        if key in groups and isinstance(value, Mapping):
            settled[key] = _settle_booleans(groups[key], value, where, f"{prefix}{key}.")
        elif isinstance(value, bool) and {"on", "off"} & _inside(hints.get(key)):
            settled[key] = "on" if value else "off"
        elif bool not in _inside(hints.get(key)) and any(
            isinstance(item, bool) for item in (value if isinstance(value, list) else [value])
        ):
            raise ConfigError(
                f"{where}: {prefix}{key}: expected no boolean (got {shown(value)}); YAML reads on, "
                "off, yes and no as booleans: quote the word if that is meant"
            )
    return settled


def _inside(hint: Any) -> set[Any]:
    """A type and all that it is made of: members of unions, words of literals."""
    return {hint}.union(*map(_inside, get_args(hint)))


@functools.cache  # it takes longer to make than to use
def _adapter(cls: type) -> Any:
    import pydantic

    return pydantic.TypeAdapter(cls)


@functools.cache
def _groups(cls: type) -> dict[str, type]:
    """The fields of ``cls`` that are configuration classes themselves."""
    hints = get_type_hints(cls)
    names = [field.name for field in dataclasses.fields(cls)]
    return {name: hints[name] for name in names if dataclasses.is_dataclass(hints[name])}


def _leaves(cls: type, prefix: str = "") -> Iterator[str]:
    groups = _groups(cls)
    for field in dataclasses.fields(cls):
        if field.name in groups:
            yield from _leaves(groups[field.name], f"{prefix}{field.name}.")
        else:
            yield prefix + field.name


def _required(cls: type) -> list[str]:
    """Fields without a default of their own."""
    missing = dataclasses.MISSING
    return [
        field.name
        for field in dataclasses.fields(cls)
        if field.default is missing and field.default_factory is missing
    ]


def _field_path(cls: type, location: Sequence[Any]) -> list[Any]:
    """Drop pydantic's union and type markers from an error's location."""
    path: list[Any] = []
    for part in location:
        known = dataclasses.is_dataclass(cls) and part in {f.name for f in dataclasses.fields(cls)}
        if known or isinstance(part, int):
            path.append(part)
            cls = _groups(cls).get(part, cls) if known else cls
    return path or list(location)


def _place(path: Sequence[Any], where: str) -> str:
    """What a value is called: by its flag, as typed, or by its key in a file."""
    if where == FLAGS:
        return _as_flag(".".join(part for part in path if isinstance(part, str)))
    return ".".join(map(str, path))


def _refuse_unknown(cls: type, values: Mapping[str, Any], where: str, prefix: str = "") -> None:
    groups, leaves = _groups(cls), list(_leaves(cls))
    known = {field.name for field in dataclasses.fields(cls)} | set(leaves)
    for key, value in values.items():
        if key not in known:
            raise ConfigError(f"{where}: unknown key '{prefix}{key}'" + suggest(key, sorted(known)))
        group, _, name = key.partition(".")
        if name and isinstance(values.get(group), Mapping) and name in values[group]:
            raise ConfigError(f"{where}: '{prefix}{key}' is given twice, once inside '{group}'")
        if key in groups and isinstance(value, Mapping):
            _refuse_unknown(groups[key], value, where, f"{prefix}{key}.")
