"""The shape of the package: who imports whom, what the wheel holds, what has one home."""

from __future__ import annotations

import ast
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = {"finetune": ROOT / "finetune", "pretrain": ROOT / "pretrain"}
ANALYSIS = ROOT / "dogmed" / "analysis"
INFERENCE = ROOT / "dogmed" / "inference"


def python_files(folder: Path) -> list[Path]:
    return [file for file in sorted(folder.rglob("*.py")) if "__pycache__" not in file.parts]


def core_files() -> list[Path]:
    linked = {"finetune", "pretrain", "configs", "analysis", "inference"}
    return [f for f in python_files(ROOT / "dogmed") if f.relative_to(ROOT).parts[1] not in linked]


def imports(file: Path) -> set[str]:
    """Every module a file imports, at its top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def imports_package(file: Path, package: str) -> bool:
    return any(name == package or name.startswith(package + ".") for name in imports(file))


def test_the_core_imports_no_pipeline() -> None:
    for file in core_files():
        for pipeline in ROOMS:
            assert not imports_package(file, f"dogmed.{pipeline}"), f"{file} imports {pipeline}"


def test_the_pipelines_do_not_import_each_other() -> None:
    for file in python_files(ROOMS["finetune"]):
        assert not imports_package(file, "dogmed.pretrain"), file
    for file in python_files(ROOMS["pretrain"]):
        assert not imports_package(file, "dogmed.finetune"), file


def test_the_analyses_are_imported_by_nobody_and_read_images_as_pretraining_does() -> None:
    for file in [*core_files(), *python_files(ROOMS["finetune"]), *python_files(ROOMS["pretrain"])]:
        assert not imports_package(file, "dogmed.analysis"), file
    readers = {"images", "loader", "subset", "transforms"}
    for file in python_files(ANALYSIS):
        assert not imports_package(file, "dogmed.finetune"), file
        used = {name.split(".")[2] for name in imports(file) if name.startswith("dogmed.pretrain.")}
        assert used <= readers, f"{file} imports {used - readers}"


def test_inference_needs_the_core_alone_and_the_core_has_load_alone_of_it() -> None:
    for file in python_files(INFERENCE):
        for room in (*ROOMS, "analysis"):
            assert not imports_package(file, f"dogmed.{room}"), f"{file} imports {room}"
    others = [*core_files(), *python_files(ROOMS["finetune"]), *python_files(ROOMS["pretrain"])]
    users = {file for file in others if imports_package(file, "dogmed.inference")}
    assert users == {ROOT / "dogmed" / "__init__.py"}


@pytest.mark.parametrize("library", ["mlflow", "optuna", "tyro"])
def test_a_large_library_is_imported_in_one_room(library: str) -> None:
    """A module that holds all of it, or a folder that is about nothing else."""
    rooms = [ANALYSIS, INFERENCE, *ROOMS.values()]
    files = [*core_files(), *(file for room in rooms for file in python_files(room))]
    users = [file for file in files if imports_package(file, library)]
    shared = {ROOT / "dogmed", *ROOMS.values()}
    homes = {file if file.parent in shared else file.parent for file in users}
    assert len(homes) <= 1, homes


@pytest.mark.parametrize("name", ["finetune", "pretrain", "configs"])
def test_the_mapped_folders_are_reached_by_relative_links(name: str) -> None:
    link = ROOT / "dogmed" / name
    assert link.is_symlink()
    assert str(link.readlink()) == f"../{name}"


@pytest.mark.parametrize("name", ["finetune", "pretrain", "configs"])
def test_a_bare_import_of_a_mapped_folder_is_refused(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"import {name}"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert f"import this package as dogmed.{name}" in done.stderr


def test_the_wheel_holds_dogmed_and_nothing_else(tmp_path: Path) -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    copy = tmp_path / "tree"
    tracked = [name for name in listed.stdout.split("\0") if name and (ROOT / name).exists()]
    for name in tracked:
        target = copy / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_symlink():
            target.symlink_to((ROOT / name).readlink())
        else:
            target.write_bytes((ROOT / name).read_bytes())
    build = "from setuptools import build_meta; print(build_meta.build_wheel('dist'))"
    subprocess.run([sys.executable, "-c", build], cwd=copy, check=True, capture_output=True)
    (wheel,) = (copy / "dist").glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name.split("/")[0].split("-")[0] for name in names} == {"dogmed"}
    expected = {name for name in tracked if name.endswith((".py", ".yaml", ".html", ".css"))}
    expected = {
        name if name.startswith("dogmed/") else f"dogmed/{name}"
        for name in expected
        if name.split("/")[0] in ("dogmed", "finetune", "pretrain", "configs")
    }
    assert expected <= names, expected - names
    assert "dogmed/py.typed" in names
