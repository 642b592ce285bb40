"""The words of a command line, read by tyro; whatever is wrong with one is told in one line.

tyro is imported here and nowhere else.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from dogmed.errors import ConfigError, nearest

T = TypeVar("T")

_ALIASES = {"learning-rate": "lr", "wd": "weight-decay"}
_KINDS = {
    "FLOAT FLOAT": "two numbers",
    "FLOAT": "a number",
    "INT": "a whole number",
}  # tyro's names


def called(name: str) -> Any:
    """What the flag of a field is called whose own name has an underscore behind, as ``class_``."""
    import tyro

    return tyro.conf.arg(name=name)


def take_config_flag(argv: Sequence[str]) -> tuple[list[str], str | None]:
    """Split ``--config FILE`` off; returns the other words, and the file or None.

    Raises:
        ConfigError: the flag is there twice or names no file.
    """
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


def refuse_unknown_flags(known: Sequence[str], argv: Sequence[str]) -> None:
    """Make sure that every flag is one of ``known``, or its negation.

    Raises:
        ConfigError: one is not; the nearest is named, or how a file is that is called so.
    """
    negated = {re.sub(r"([^.-][^.]*)$", r"no-\1", flag) for flag in known}
    accepted = {*known, *negated, "--help"}
    for word in argv:
        flag = _flag(word)
        if flag.startswith("--") and flag not in accepted:
            raise ConfigError(f"unknown option {word}" + suggest(flag, [*known, "--config"]))
        if re.match(r"-(?!-|h$|\.?\d|inf|nan)", word):
            raise ConfigError(
                f"unknown option {word}: flags begin with --, a file of this name is ./{word}"
            )


def refuse_missing_flags(required: Sequence[str], argv: Sequence[str], prog: str) -> None:
    """Make sure that every flag of ``required`` is there, unless help is asked for.

    Raises:
        ConfigError: some are not.
    """
    given = {_flag(word) for word in argv}
    missing = [flag for flag in required if flag not in given]
    if missing and not given & {"--help", "-h"}:
        raise ConfigError(f"{prog} needs {' and '.join(missing)}; {prog} --help says more")


def suggest(name: str, choices: Sequence[str]) -> str:
    """Name the choice that is meant: one of that name in a group, else the nearest."""
    word = name.removeprefix("--").replace("_", "-")
    last = _ALIASES.get(word, word)
    same = [c for c in choices if c.rpartition(".")[2].replace("_", "-") == last]
    return f" (did you mean '{min(same, key=len)}'?)" if same else nearest(name, choices)


def without_values(cls: type[T], values: Mapping[str, Any], missing: Sequence[str]) -> T:
    """A ``cls`` of ``values`` in which tyro insists on the fields ``missing``."""
    import tyro

    return cls(**values, **dict.fromkeys(missing, tyro.MISSING))


def run_tyro(cls: type[T], argv: Sequence[str], default: T, prog: str, summary: str) -> T:
    """Read the flags of ``cls`` over ``default``; ``--help`` prints them and exits 0.

    Raises:
        ConfigError: a word is no flag, or a value not of its flag's type.
    """
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


def _flag(word: str) -> str:
    return word.partition("=")[0].replace("_", "-")


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
