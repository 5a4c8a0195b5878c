"""The house in order: imports point down, environment.yml agrees with pyproject.toml, nothing stray at the top."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
# A module imports only from its own line and from those before it.
LAYERS = [
    "__init__ checks intervals record",
    "files presets runtime",
    "labels pool",
    "data models train",
    "attacks baselines boundary detector region",
    "adaptive",
    "suite tables claims",
    "store",
    "runner plots",
    "bench widgets",
    "pages",
    "cli __main__",
]
LEVEL = {module: level for level, line in enumerate(LAYERS) for module in line.split()}
CONDA_NAMES = {"torch": "pytorch"}


def modules():
    return sorted((ROOT / "nbsupport").rglob("*.py"))


def unit(path):
    """The module or package directly below nbsupport that a file belongs to."""
    return path.relative_to(ROOT / "nbsupport").parts[0].removesuffix(".py")


def imported(path):
    """Names of what a file imports from nbsupport, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "nbsupport":
            parts = node.module.split(".")
            yield from [parts[1]] if len(parts) > 1 else [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            yield from [a.name.split(".")[1] for a in node.names if a.name.startswith("nbsupport.")]


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path):
    own = unit(path)
    assert own in LEVEL, f"{own} has no place among the layers"
    wrong = [name for name in imported(path) if name in LEVEL and name != own and LEVEL[name] > LEVEL[own]]
    assert not wrong


def test_importing_the_package_loads_neither_torch_nor_jupyter():
    code = "import sys, nbsupport.cli; print(*(m for m in ('torch', 'papermill', 'ipywidgets') if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_no_import_needs_posix():
    names = ("bench", "cli", "runner.sweep", "suite", "tables", "claims", "store", "widgets")
    code = """
import builtins, importlib, sys
real = builtins.__import__
def portable(name, variables=None, *args, **options):
    if name in ("fcntl", "pwd", "grp", "resource", "termios") and "nbsupport" in (variables or {}).get("__name__", ""):
        raise ImportError(f"{name} is not on Windows")
    return real(name, variables, *args, **options)
builtins.__import__ = portable
for name in sys.argv[1:]:
    importlib.import_module(f"nbsupport.{name}")
"""
    done = subprocess.run([sys.executable, "-c", code, *names], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_kernels_import_without_jupyter():
    names = "attacks boundary region detector models train data bench"
    names += " files cli store runner suite tables claims"  # and all else that `nbsupport bench` loads
    absent = "papermill ipywidgets IPython jupyterlab jupyter_client ipykernel nbformat nbclient distributed foolbox"
    block = f"for m in '{absent}'.split(): sys.modules[m] = None"
    code = f"import sys\n{block}\nimport nbsupport.runner.sweep\nfrom nbsupport import {names.replace(' ', ', ')}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_conda_users_get_the_same_set():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {}
    for text in project["dependencies"] + project["optional-dependencies"]["test"]:
        requirement = Requirement(text)
        wanted[CONDA_NAMES.get(requirement.name, requirement.name)] = str(requirement.specifier).replace("==", "=")
    listed = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    found = {}
    for entry in listed:
        if isinstance(entry, str) and entry != "pip":
            name, specifier = re.fullmatch(r"([\w-]+)(.*)", entry).groups()
            found[name] = specifier
    assert found.pop("python") == project["requires-python"]
    assert found == wanted
    assert {"pip": ["--editable ."]} in listed


def test_the_top_level_is_as_agreed():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    if not tracked:
        pytest.skip("not a git checkout")
    top = {name.split("/")[0] for name in tracked}
    agreed = {"README.md", "environment.yml", "notebooks", "nbsupport", "tests", "figures", "pyproject.toml", "LICENSE"}
    assert {name for name in top if not name.startswith(".")} == agreed
