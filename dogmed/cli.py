"""The ``dogmed`` command: a table of commands, each imported only when it is called."""

from __future__ import annotations

import dataclasses
import importlib
import math
import os
import sys
import typing
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from dogmed import __version__
from dogmed.errors import ConfigError, DogmedError, Interrupted, nearest, printable


class Command(NamedTuple):
    """Where a command's configuration class and function live, and the recipe its defaults come from.

    With ``choice``, ``--recipe NAME`` takes another recipe of the same folder, and the configuration
    has a field ``recipe`` for the name. Words that belong to no flag are the value of the field
    ``words``, where there is one, and ``usage`` is how the help shows them. The function is called
    with the configuration's fields as keyword arguments; it returns an exit code, or None for 0.
    """

    summary: str
    config: str
    function: str
    recipe: str | None = None
    choice: bool = False
    words: str | None = None
    usage: str = ""


COMMANDS = {
    "finetune": Command(
        "train a model on a task, select on val, score test once",
        "dogmed.finetune.config:FinetuneConfig",
        "dogmed.finetune.command:command",
        "finetune/default",
    ),
    "benchmark": Command(
        "fine-tune every combination of tasks, models, initial weights and seeds",
        "dogmed.finetune.benchmark.matrix:BenchmarkConfig",
        "dogmed.finetune.benchmark.matrix:command",
        "finetune/benchmark",
    ),
    "report": Command(
        "write tables, statistics and pictures of the finished runs",
        "dogmed.finetune.report.command:ReportConfig",
        "dogmed.finetune.report.command:command",
    ),
    "ablate": Command(
        "train DoGNeXt and its variants alike, and tell which of its parts matter",
        "dogmed.finetune.ablate.options:AblateConfig",
        "dogmed.finetune.ablate.options:command",
        "finetune/ablate",
    ),
    "tune": Command(
        "search options that do better on val, and compare them with the usual ones",
        "dogmed.finetune.tune.options:TuneConfig",
        "dogmed.finetune.tune.options:command",
        "finetune/tune",
    ),
    "pretrain": Command(
        "train a model on ImageNet by a recipe, and put its weights where --init finds them",
        "dogmed.pretrain.config:PretrainConfig",
        "dogmed.pretrain.command:command",
        "pretrain/imagenet50ep",
        choice=True,
    ),
    "pretrain pack": Command(
        "re-encode ImageNet once to tar shards that decode faster",
        "dogmed.pretrain.pack:PackConfig",
        "dogmed.pretrain.pack:pack",
    ),
    "predict": Command(
        "classify images with a trained network, into a CSV file",
        "dogmed.inference.predict:PredictConfig",
        "dogmed.inference.predict:command",
        words="inputs",
        usage="MODEL INPUT [INPUT ...]",
    ),
    "explain": Command(
        "draw where on an image a network's answer comes from (Grad-CAM)",
        "dogmed.inference.explain.command:ExplainConfig",
        "dogmed.inference.explain.command:command",
        words="inputs",
        usage="MODEL IMAGE [IMAGE ...]",
    ),
    "export": Command(
        "write a trained network for timm, ONNX, torch.export or MONAI, with a model card",
        "dogmed.inference.export.command:ExportConfig",
        "dogmed.inference.export.command:export",
        words="model",
        usage="MODEL --format FORMAT",
    ),
    "push": Command(
        "upload an export to the Hugging Face hub; only shows what would be, without --yes",
        "dogmed.inference.export.command:PushConfig",
        "dogmed.inference.export.command:push",
        words="folder",
        usage="FOLDER --repo ORG/NAME",
    ),
    "serve": Command(
        "serve a trained network on a web page, and as JSON",
        "dogmed.inference.serve.command:ServeConfig",
        "dogmed.inference.serve.command:serve",
        words="model",
        usage="MODEL",
    ),
    "analyze scale": Command(
        "score trained models at many resolutions and kernel sizes",
        "dogmed.analysis.scale.command:ScaleConfig",
        "dogmed.analysis.scale.command:command",
        words="models",
        usage="MODEL [MODEL ...]",
    ),
    "analyze flops": Command(
        "trade a trained model's accuracy for FLOPs: stride, kernel, resolution",
        "dogmed.analysis.flops.command:FlopsConfig",
        "dogmed.analysis.flops.command:command",
        words="models",
        usage="MODEL [MODEL ...]",
    ),
    "analyze kernels": Command(
        "draw and count the kernels of trained models, and fit DoG kernels to others",
        "dogmed.analysis.kernels.command:KernelsConfig",
        "dogmed.analysis.kernels.command:command",
        words="models",
        usage="MODEL [MODEL ...]",
    ),
    "stress": Command(
        "score trained models on corrupted images of the test split",
        "dogmed.analysis.stress.command:StressConfig",
        "dogmed.analysis.stress.command:command",
        words="models",
        usage="MODEL [MODEL ...]",
    ),
    "ui": Command(
        "open the MLflow UI on this project's runs",
        "dogmed.ui:UiConfig",
        "dogmed.ui:serve",
    ),
    "sync": Command(
        "log to MLflow what it lacks of the runs, from their folders",
        "dogmed.sync:SyncConfig",
        "dogmed.sync:sync",
        words="folders",
        usage="[FOLDER ...]",
    ),
    "data list": Command(
        "list the tasks, their licences and what is on this machine",
        "dogmed.data.commands:ListConfig",
        "dogmed.data.commands:data_list",
    ),
    "data download": Command(
        "download, check and prepare official files",
        "dogmed.data.commands:DownloadConfig",
        "dogmed.data.commands:data_download",
    ),
    "data verify": Command(
        "check files and prepared arrays against their hashes",
        "dogmed.data.commands:VerifyConfig",
        "dogmed.data.commands:data_verify",
    ),
    "data synth": Command(
        "generate synthetic data in MedMNIST's format",
        "dogmed.data.commands:SynthConfig",
        "dogmed.data.commands:data_synth",
    ),
    "weights list": Command(
        "list the named weights on this machine",
        "dogmed.weights.commands:ListConfig",
        "dogmed.weights.commands:weights_list",
    ),
    "weights show": Command(
        "show all that a weights file says of itself",
        "dogmed.weights.commands:ShowConfig",
        "dogmed.weights.commands:weights_show",
        words="name",
    ),
    "weights verify": Command(
        "check weights against their records",
        "dogmed.weights.commands:VerifyConfig",
        "dogmed.weights.commands:weights_verify",
        words="name",
    ),
    "weights import": Command(
        "take a checkpoint of timm or ConvNeXt V2 into the store, for --init",
        "dogmed.weights.commands:ImportConfig",
        "dogmed.weights.commands:weights_import",
        words="file",
    ),
    "weights export": Command(
        "write weights in the forms that timm opens",
        "dogmed.weights.commands:ExportConfig",
        "dogmed.weights.commands:weights_export",
        words="name",
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 done, 1 failed, 2 wrong input, 3 in part, 128+n signal n."""
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    try:
        return _dispatch(words)
    except DogmedError as error:
        if debug:
            raise
        print(f"dogmed: {printable(str(error))}", file=sys.stderr)
        return error.exit_code
    except Interrupted as stop:
        print(f"dogmed: {stop}", file=sys.stderr)
        return stop.exit_code
    except KeyboardInterrupt:
        print("dogmed: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        if debug:
            raise
        print(f"dogmed: {error} (--debug shows where)", file=sys.stderr)
        return 1


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(_help())
        return 0
    if words[0] in ("--version", "-V"):
        print(f"dogmed {__version__}")
        return 0
    if words[0] not in COMMANDS and words[1:] in (["-h"], ["--help"]) and _group(words[0]):
        print(_group_help(words[0]))
        return 0
    name, rest = _match(words)
    command = COMMANDS[name]
    if command.words:
        rest = _name_words(command, rest)
    from dogmed import config

    parsed: Any = config.parse(
        _resolve(command.config),
        rest,
        prog=f"dogmed {name} {command.usage}".strip(),
        base=_defaults(command, rest),
        summary="\n\n".join([command.summary, *_also(name)]),
    )
    fields = {field.name: getattr(parsed, field.name) for field in dataclasses.fields(parsed)}
    return _resolve(command.function)(**fields) or 0


def _name_words(command: Command, argv: Sequence[str]) -> list[str]:
    """Give the words that belong to no flag, before or behind them, to the field ``words``."""
    hints = typing.get_type_hints(_resolve(command.config))
    bare, rest = list[str](), list[str]()
    room = 0.0  # words that the flag before may still take
    for word in argv:
        if word.startswith("-"):
            flag, equals, _ = word.removeprefix("--").partition("=")
            hint = hints.get(flag.replace("-", "_"))
            several = typing.get_origin(hint) is tuple
            room = (
                0
                if equals or hint is bool or flag.startswith("no-")
                else math.inf
                if several
                else 1
            )
        elif room:
            room -= 1
        else:
            bare.append(word)
            continue
        rest.append(word)
    return [f"--{command.words}", *bare, *rest] if bare else rest


def _defaults(command: Command, words: list[str]) -> dict[str, Any] | None:
    """The values of the command's recipe."""
    from dogmed import config

    if command.recipe is None:
        return None
    return config.base_values(words, command.recipe, choice=command.choice)


def _match(words: list[str]) -> tuple[str, list[str]]:
    name = " ".join(words[:2])
    if name in COMMANDS:
        return name, words[2:]
    group = _group(words[0])
    command = COMMANDS.get(words[0])
    stray = words[1:] and not words[1].startswith("-") and not (command and command.words)
    if command and not (group and stray):
        return words[0], words[1:]
    if group and len(words) == 1:
        raise ConfigError(f"which one? {', '.join('dogmed ' + name for name in group)}")
    tried = name if group else words[0]
    raise ConfigError(
        f"unknown command '{tried}'" + nearest(tried, COMMANDS) + "; dogmed --help lists them"
    )


def _group(word: str) -> dict[str, Command]:
    """The commands that begin with ``word`` and have another."""
    return {name: command for name, command in COMMANDS.items() if name.startswith(f"{word} ")}


def _also(name: str) -> list[str]:
    """What the help of a command that others begin with says of these."""
    return ["\n".join(["Also:", *_rows(_group(name))])] if _group(name) else []


def _rows(commands: Mapping[str, Command]) -> list[str]:
    width = max(map(len, commands))
    return [f"  {name:<{width}}  {command.summary}" for name, command in commands.items()]


def _group_help(word: str) -> str:
    usage = (
        f"usage: dogmed {word} COMMAND [--flags]      dogmed {word} COMMAND --help lists the flags"
    )
    return "\n".join([usage, "", *_rows(_group(word))])


def _help() -> str:
    return "\n".join(
        [
            f"dogmed {__version__}: medical image classification with DoGNeXt and ConvNeXt V2",
            "",
            "usage: dogmed COMMAND [--flags]      dogmed COMMAND --help lists the flags",
            "",
            *_rows(COMMANDS),
            "",
            "first steps:",
            "  dogmed finetune --task breastmnist --data synthetic --size 64 --epochs 5",
            "  dogmed finetune --task pneumoniamnist --data-dir DIR --model convnextv2_atto",
            "  dogmed ui",
            "",
            "--debug shows the traceback of an error; --version prints the version",
        ]
    )


def _resolve(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


if __name__ == "__main__":
    sys.exit(main())
