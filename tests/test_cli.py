"""The command line from outside: exit codes, one-line errors, quick help."""

from __future__ import annotations

import subprocess
import sys

import pytest

from dogmed import __version__, cli


def run(*argv: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dogmed", *argv]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_help_lists_every_command_and_imports_nothing_heavy() -> None:
    code = (
        "import sys; from dogmed import cli; cli.main(['--help']);"
        "heavy = {'torch', 'monai', 'mlflow', 'numpy', 'timm', 'medmnist', 'pydantic', 'tyro'};"
        "sys.exit(f'imported: {heavy & set(sys.modules)}' if heavy & set(sys.modules) else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name in cli.COMMANDS:
        assert f"  {name} " in done.stdout


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_explains_its_flags(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main([*name.split(), "--help"])
    assert stop.value.code in (0, None)
    printed = capsys.readouterr().out
    assert f"usage: dogmed {name}" in printed
    if name.startswith("analyze "):
        assert f"usage: dogmed {name} MODEL [MODEL ...] " in printed
    assert "--config" in printed


@pytest.mark.parametrize("group", ["data", "pretrain", "weights"])
@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_the_help_of_a_group_shows_its_commands(
    group: str, flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        assert cli.main([group, flag]) == 0
    except SystemExit as stop:  # of a command that is a group too
        assert stop.code in (0, None)
    printed = capsys.readouterr().out
    assert f"usage: dogmed {group}" in printed
    for name, command in cli.COMMANDS.items():
        if name.startswith(f"{group} "):
            assert name in printed and command.summary[:40] in printed


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["pretrain", "pak"], "unknown command 'pretrain pak' (did you mean 'pretrain pack'?)"),
        (["pretrain", "pack"], "dogmed pretrain pack needs --data and --out; "),
        (["pretrain", "pack", "--data=x"], "dogmed pretrain pack needs --out; "),
        (["weights", "export", "x"], "dogmed weights export needs --out; "),
        (["weights", "shw", "x"], "(did you mean 'weights show'?)"),
    ],
)
def test_what_is_missing_or_misspelt_is_named(
    argv: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(argv) == 2
    line = capsys.readouterr().err
    assert said in line and line.count("\n") == 1


@pytest.mark.parametrize(
    ("argv", "given"),
    [
        (["a", "b"], ["--name", "a", "b"]),
        (["a", "--weights-dir", "d"], ["--name", "a", "--weights-dir", "d"]),
        (["--weights-dir", "d", "a"], ["--name", "a", "--weights-dir", "d"]),
        (["--weights-dir=d", "a"], ["--name", "a", "--weights-dir=d"]),
        (["--json", "a"], ["--name", "a", "--json"]),
        (["--no-json", "a"], ["--name", "a", "--no-json"]),
        (["--config", "f.yaml", "a"], ["--name", "a", "--config", "f.yaml"]),
        (["--name", "a"], ["--name", "a"]),
        (["--help"], ["--help"]),
    ],
)
def test_words_stand_before_or_behind_the_flags(argv: list[str], given: list[str]) -> None:
    assert cli._name_words(cli.COMMANDS["weights show"], argv) == given


def test_a_flag_of_many_takes_all_words_behind_it() -> None:
    argv = ["--folders", "a", "b"]
    assert cli._name_words(cli.COMMANDS["sync"], argv) == argv


def test_version() -> None:
    assert run("--version").stdout.strip() == f"dogmed {__version__}"


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["fintune"], "unknown command 'fintune' (did you mean 'finetune'?)"),
        (["data"], "which one? dogmed data list"),
        (["data", "lst"], "did you mean 'data list'?"),
        (["finetune", "--epochs", "x"], "--epochs"),
        (["finetune"], "--task"),
        (["finetune", "--task", "pathmnits"], "did you mean 'pathmnist'?"),
        (["pretrain", "--recipe", "imagenet50epp"], "did you mean 'imagenet50ep'?"),
        (["pretrain", "--data", "/nowhere"], "/nowhere: there is no such folder"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(argv: list[str], said: str) -> None:
    done = run(*argv)
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert said in done.stderr


def test_debug_shows_the_traceback() -> None:
    done = run("finetune", "--epochs", "x", "--debug")
    assert done.returncode != 0
    assert "Traceback" in done.stderr
