"""What a study may vary: options of ``dogmed finetune`` with their choices or ranges, read from YAML."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from dogmed import config as configuration
from dogmed.data.tasks import official_tasks
from dogmed.errors import ConfigError, nearest
from dogmed.finetune.config import FinetuneConfig
from dogmed.yamlfile import parse_yaml, shown

GROUPS = ("optim", "loss", "net", "augment")
RANGE = ("low", "high", "log", "step")


class Suggests(Protocol):
    """An Optuna trial, as far as a space needs it."""

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None, log: bool
    ) -> float: ...

    def suggest_int(self, name: str, low: int, high: int, *, step: int, log: bool) -> int: ...

    def suggest_categorical(self, name: str, choices: Any) -> Any: ...


@dataclass(frozen=True)
class Option:
    """The values that one option may take: ``choices``, or all from ``low`` to ``high``."""

    choices: tuple[Any, ...] = ()
    low: float = 0
    high: float = 0
    log: bool = False
    step: float | None = None
    whole: bool = False
    """Whether the values are whole numbers."""

    def suggest(self, trial: Suggests, name: str) -> Any:
        """Have the study choose a value."""
        if self.choices:
            return trial.suggest_categorical(name, self.choices)
        if self.whole:
            low, high, step = int(self.low), int(self.high), int(self.step or 1)
            return trial.suggest_int(name, low, high, step=step, log=self.log)
        value = trial.suggest_float(name, self.low, self.high, step=self.step, log=self.log)
        return self.clean(value)

    def clean(self, value: Any) -> Any:
        """A value as the study keeps it, without what adding steps has left: 0.30000000000000004 is 0.3."""
        return float(f"{value:.12g}") if self.step and not self.whole else value

    def ends(self) -> tuple[Any, ...]:
        """The outermost values, or all choices."""
        if self.choices:
            return self.choices
        return (int(self.low), int(self.high)) if self.whole else (self.low, self.high)

    def __str__(self) -> str:
        if self.choices:
            return ", ".join("none" if value is None else str(value) for value in self.choices)
        how = " (log)" if self.log else f" (step {self.step:g})" if self.step else ""
        return f"{self.low:g} to {self.high:g}{how}"


Space = dict[str, Option]


def tunable() -> list[str]:
    """The options that a study may vary: they change how a model is trained, not what the task is."""
    names = [
        flag.removeprefix("--").replace("-", "_") for flag in configuration.flags(FinetuneConfig)
    ]
    return [n for n in names if n.partition(".")[0] in GROUPS or n in ("batch_size", "epochs")]


def read_space(name: str) -> tuple[str, dict[str, Any]]:
    """Read a shipped space, or a YAML file of one's own, which may extend a shipped one.

    Returns:
        What messages call it, and its values as they stand in YAML, options by their dotted name and
        those of single tasks in ``tasks``.

    Raises:
        ConfigError: there is no such space or file, or it is no space.
    """
    where = f"--space {name}"
    if not name.endswith((".yaml", ".yml")):
        known = configuration.recipes("tune")
        if name not in known:
            raise ConfigError(
                f"{where}: no such space{nearest(name, known)}; there are {', '.join(known)}, or give "
                "a YAML file of your own"
            )
        values = configuration.recipe(f"tune/{name}")
    else:
        try:
            values = parse_yaml(Path(name).expanduser().read_text(), where)
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{where}: cannot be read ({error})") from None
    below: dict[str, Any] = {}
    if (parent := values.pop("extends", None)) is not None:
        _, below = read_space(str(parent))
    tasks = values.pop("tasks", None) or {}
    if not isinstance(tasks, Mapping):
        raise ConfigError(f"{where}: tasks: expected options of single tasks, got {shown(tasks)}")
    of_tasks = dict(below.pop("tasks", {}))
    for task, options in tasks.items():
        if not isinstance(options, Mapping):
            raise ConfigError(f"{where}: tasks: {task}: expected options, got {shown(options)}")
        of_tasks[task] = of_tasks.get(task, {}) | _options(options, f"{where}: tasks: {task}")
    return where, {**below, **_options(values, where), "tasks": of_tasks}


def space_of(name: str, task: str, base: FinetuneConfig) -> Space:
    """The space of one task, every value of it one that ``dogmed finetune`` takes.

    Args:
        name: of a shipped space, or a YAML file.
        task: whose own options win over those for all.
        base: the options that are not varied.

    Raises:
        ConfigError: an unknown option, task or key, a value out of its option's bounds, or no option.
    """
    where, values = read_space(name)
    tasks = values.pop("tasks")
    known = [*official_tasks(), task]
    for other in tasks:
        if other not in known:
            raise ConfigError(f"{where}: tasks: unknown task '{other}'{nearest(other, known)}")
    space = {
        key: _option(f"{where}: {key}", key, spec, base)
        for key, spec in {**values, **tasks.get(task, {})}.items()
    }
    if not space:
        raise ConfigError(f"{where}: holds no option to vary for {task}")
    if base.optim.lr is not None and "optim.lr_base" in space and "optim.lr" not in space:
        raise ConfigError(
            f"{where}: optim.lr_base does nothing while --optim.lr is given: drop one"
        )
    return space


def with_values(base: FinetuneConfig, values: Mapping[str, Any], where: str) -> FinetuneConfig:
    """The options with some of them set, checked.

    Raises:
        ConfigError: a value that its option does not take.
    """
    merged = configuration.merge(configuration.to_dict(base), values)
    return configuration.build(FinetuneConfig, merged, where=where)


def _options(values: Mapping[str, Any], where: str, prefix: str = "") -> dict[str, Any]:
    """Dotted names of the options that a study may vary, whether they were written in groups or not."""
    found: dict[str, Any] = {}
    names = tunable()
    for key, value in values.items():
        name = prefix + str(key).replace("-", "_")
        if name in GROUPS and isinstance(value, Mapping):
            found |= _options(value, where, f"{name}.")
        elif name in names:
            found[name] = value
        else:
            every = configuration.flags(FinetuneConfig)
            fixed = "--" + name.replace("_", "-") in every
            what = "cannot be varied by a study" if fixed else "is no option of dogmed finetune"
            raise ConfigError(f"{where}: '{name}' {what}{'' if fixed else nearest(name, names)}")
    return found


def _option(where: str, name: str, spec: Any, base: FinetuneConfig) -> Option:
    if isinstance(spec, list):
        return _choices(where, name, spec, base)
    if not isinstance(spec, Mapping):
        raise ConfigError(
            f"{where}: expected a list of choices or a range {{low: , high: }}, got {shown(spec)}"
        )
    for key in spec:
        if key not in RANGE:
            raise ConfigError(f"{where}: unknown key '{key}'{nearest(key, RANGE)}")
    if not {"low", "high"} <= spec.keys():
        raise ConfigError(f"{where}: a range needs low and high")
    low, high = (_value(where, name, spec[end], base) for end in ("low", "high"))
    log, step = spec.get("log", False), spec.get("step")
    whole = isinstance(low, int)
    if not all(isinstance(end, int | float) for end in (low, high)):
        raise ConfigError(f"{where}: not a number: give a list of choices")
    if not isinstance(log, bool):
        raise ConfigError(f"{where}: log: expected true or false, got {shown(log)}")
    if step is not None and (isinstance(step, bool) or not isinstance(step, int | float)):
        raise ConfigError(f"{where}: step: expected a number, got {shown(step)}")
    if not low < high:
        raise ConfigError(f"{where}: low must be below high (got {low} and {high})")
    if log and (step is not None or low <= 0):
        raise ConfigError(f"{where}: log needs low above 0 and takes no step")
    if step is not None and (not 0 < step <= high - low or (whole and step != int(step))):
        raise ConfigError(f"{where}: step {step} does not fit between {low} and {high}")
    if step is not None and abs((steps := (high - low) / step) - round(steps)) > 1e-6:
        last = f"{low + int(steps) * step:.12g}"
        raise ConfigError(f"{where}: steps of {step} from {low} end at {last}, not at high, {high}")
    return Option(low=low, high=high, log=log, step=step, whole=whole)


def _choices(where: str, name: str, spec: list[Any], base: FinetuneConfig) -> Option:
    if not spec:
        raise ConfigError(f"{where}: the list of choices is empty")
    choices = tuple(_value(where, name, value, base) for value in spec)
    if len(set(choices)) < len(choices):
        raise ConfigError(f"{where}: a choice is given twice")
    return Option(choices=choices)


def _value(where: str, name: str, value: Any, base: FinetuneConfig) -> Any:
    """A value as its option has it, a word, a number or None."""
    if isinstance(value, list | Mapping):
        raise ConfigError(f"{where}: expected words and numbers, got {shown(value)}")
    built: Any = with_values(base, {name: value}, where.removesuffix(f": {name}"))
    for part in name.split("."):
        built = getattr(built, part)
    return built
