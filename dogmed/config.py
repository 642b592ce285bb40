"""Configuration: frozen dataclasses, filled by a shipped recipe < ``--config FILE`` < flags.

A configuration class is a plain frozen dataclass, ``@configclass``; each field is documented once, by the
string under it, and that string is also the flag's help. Values of a recipe live in its YAML file and
nowhere else. Everything is checked by pydantic before any work starts, and unknown keys are refused
with the nearest name. tyro turns the dataclass into flags; it is imported here and nowhere else.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar, cast, dataclass_transform, get_args, get_type_hints

import yaml

from dogmed.errors import ConfigError, nearest
from dogmed.yamlfile import parse_yaml, shown

T = TypeVar("T")

_ALIASES = {"learning-rate": "lr", "wd": "weight-decay"}
_KINDS = {
    "FLOAT FLOAT": "two numbers",
    "FLOAT": "a number",
    "INT": "a whole number",
}  # tyro's names


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
    folder = name.rpartition("/")[0]
    chain: list[str] = []
    layers = []
    while True:
        if name in chain:
            raise ConfigError(
                f"recipe {chain[0]}: extends in a circle ({' -> '.join([*chain, name])})"
            )
        file = resources.files("dogmed.configs").joinpath(f"{name}.yaml")
        if not file.is_file():
            by = f", which recipe {chain[-1]} extends," if chain else ""
            raise ConfigError(f"no recipe '{name}'{by} is shipped with dogmed")
        chain.append(name)
        values = parse_yaml(file.read_text(), f"recipe {name}")
        parent = values.pop("extends", None)
        layers.append(values)
        if parent is None:
            break
        name = f"{folder}/{parent}" if folder else str(parent)
    result: dict[str, Any] = {}
    for values in reversed(layers):
        result = merge(result, values)
    return result


def recipes(folder: str) -> list[str]:
    """List the shipped recipes of a folder (``"pretrain"``) by name."""
    files = resources.files("dogmed.configs").joinpath(folder).iterdir()
    return sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml"))


def choose_recipe(argv: Sequence[str], default: str) -> str:
    """Say which recipe the user asks for: ``--recipe NAME``, or ``recipe`` in ``--config FILE``.

    Args:
        argv: the flags.
        default: the recipe otherwise, with its folder (``"pretrain/imagenet50ep"``).

    Raises:
        ConfigError: there is no recipe of that name in the folder, or the file cannot be read.
    """
    folder, _, name = default.rpartition("/")
    rest, file = _take_config_flag(argv)
    if file is not None:
        name = read_yaml(file).get("recipe", name)
    for word, following in zip(rest, [*rest, ""][1:], strict=True):
        flag, equals, value = word.partition("=")
        if flag == "--recipe":
            name = value if equals else following
    known = recipes(folder)
    if name not in known:
        raise ConfigError(
            f"unknown recipe '{name}'{nearest(str(name), known)}; there are {', '.join(known)}"
        )
    return f"{folder}/{name}"


def read_yaml(path: Path | str) -> dict[str, Any]:
    """Read a user's YAML file of options.

    Raises:
        ConfigError: the file is missing, is not YAML or is not a mapping.
    """
    try:
        text = Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config {path}: cannot be read ({error})") from None
    return parse_yaml(text, f"--config {path}")


def build(cls: type[T], values: Mapping[str, Any], *, where: str = "config") -> T:
    """Make a ``cls`` from nested plain values, checked and coerced.

    Raises:
        ConfigError: a key is unknown or missing, or a value is not of its field's type or range.
    """
    import pydantic

    _refuse_unknown(cls, values, where)
    try:
        return pydantic.TypeAdapter(cls).validate_python(_settle_booleans(cls, values, where))
    except pydantic.ValidationError as error:
        problems = [
            f"{'.'.join(str(part) for part in _field_path(cls, d['loc']))}: {d['msg']}"
            + ("" if d["type"] == "missing" else f" (got {shown(d['input'])})")
            for d in error.errors()
        ]
        raise ConfigError(f"{where}: " + "; ".join(problems)) from None


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
    argv, config_file = _take_config_flag(argv)
    where = f"--config {config_file}" if config_file is not None else "defaults"
    values = dict(base or {})
    if config_file is not None:
        overrides = read_yaml(config_file)
        _refuse_unknown(cls, overrides, where)
        values = _settle_booleans(cls, merge(values, overrides), where)
    required = [name for name in _required(cls) if name not in values]
    if required:
        import tyro

        default = cls(**values, **dict.fromkeys(required, tyro.MISSING))
    else:
        default = build(cls, values, where=where)
    _refuse_unknown_flags(cls, argv)
    parsed = _run_tyro(cls, argv, default, prog, summary)
    return build(cls, dataclasses.asdict(cast(Any, parsed)), where="flags")


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
    return ["--" + name.replace("_", "-") for name in _leaves(cls)]


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


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


def _refuse_unknown(cls: type, values: Mapping[str, Any], where: str, prefix: str = "") -> None:
    groups, leaves = _groups(cls), list(_leaves(cls))
    known = {field.name for field in dataclasses.fields(cls)} | set(leaves)
    for key, value in values.items():
        if key not in known:
            raise ConfigError(
                f"{where}: unknown key '{prefix}{key}'" + _suggest(key, sorted(known))
            )
        group, _, name = key.partition(".")
        if name and isinstance(values.get(group), Mapping) and name in values[group]:
            raise ConfigError(f"{where}: '{prefix}{key}' is given twice, once inside '{group}'")
        if key in groups and isinstance(value, Mapping):
            _refuse_unknown(groups[key], value, where, f"{prefix}{key}.")


def _suggest(name: str, choices: Sequence[str]) -> str:
    """Name the choice that is meant: one of that name in a group, else the nearest."""
    word = name.removeprefix("--").replace("_", "-")
    last = _ALIASES.get(word, word)
    same = [c for c in choices if c.rpartition(".")[2].replace("_", "-") == last]
    return f" (did you mean '{min(same, key=len)}'?)" if same else nearest(name, choices)


def _take_config_flag(argv: Sequence[str]) -> tuple[list[str], str | None]:
    rest, file = [], None
    words = iter(argv)
    for word in words:
        name, equals, value = word.partition("=")
        if name != "--config":
            rest.append(word)
            continue
        if file is not None:
            raise ConfigError("--config is given twice; put everything into one file")
        file = value if equals else next(words, None)
        if not file or file.startswith("--"):
            raise ConfigError("--config needs a YAML file, as in --config my.yaml")
    return rest, file


def _refuse_unknown_flags(cls: type, argv: Sequence[str]) -> None:
    known = flags(cls)
    negated = {re.sub(r"([^.-][^.]*)$", r"no-\1", flag) for flag in known}
    accepted = {*known, *negated, "--help"}
    for word in argv:
        flag = word.partition("=")[0].replace("_", "-")
        if flag.startswith("--") and flag not in accepted:
            raise ConfigError(f"unknown option {word}" + _suggest(flag, [*known, "--config"]))


def _run_tyro(cls: type[T], argv: Sequence[str], default: T, prog: str, summary: str) -> T:
    import tyro

    captured = io.StringIO()
    try:
        with contextlib.redirect_stderr(captured):
            return tyro.cli(
                cls,
                args=argv,
                default=default,
                prog=prog,
                description=summary + "\n\nAlso: --config FILE (YAML; flags win over it), --debug.",
            )
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise ConfigError(_one_line(captured.getvalue(), argv)) from None


def _one_line(box: str, argv: Sequence[str]) -> str:
    """Tell tyro's boxed complaint in one line; name the nearest choice where it lists choices."""
    words = re.sub(r"[─│╭╮╰╯┌┐└┘]+", " ", box)
    words = re.split(r"For full helptext|Argument helptext", words)[0]
    line = re.sub(r"\s+", " ", words).strip() or f"the options cannot be read: {' '.join(argv)}"
    line = re.sub(r"^(Value error|Invalid choice|Missing argument|Parsing error) ", "", line)
    number = re.search(
        r"^Error parsing (--\S+): (?:no type matching (.*?) could be instantiated from \[(.*?)\]\. "
        r"|(?:(invalid literal for int)|could not convert string to float).*?: (.*))",
        line,
    )
    if number:
        flag, kinds, values, whole, value = number.groups()
        kinds = kinds or ("INT" if whole else "FLOAT")
        options = [kind.strip("{}") for kind in reversed(kinds.split("|"))]
        expected = " or ".join(_KINDS.get(option, option) for option in options)
        return f"{flag}: expected {expected}, got {values or value}"
    wrong = re.search(r"invalid choice '(.*?)' for argument .*Expected one of \((.*)\)", line)
    if wrong:
        line += nearest(wrong[1], re.findall(r"'(.*?)'", wrong[2]))
    return line
