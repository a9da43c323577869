"""Who may import whom, and what must not be imported before it is needed."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CONVERTERS = sorted((ROOT / "converters").glob("**/*.py"))
BACKEND = sorted((ROOT / "backend").glob("**/*.py"))
# What reads from or listens to Label Studio goes through the one module that wraps its SDK.
SDK_MODULE = ROOT / "converters" / "label_studio.py"
# Each takes a second or more to import; `cellai --help` and every child process would pay.
HEAVY = (
    *("torch", "torch._dynamo", "torchvision", "label_studio_sdk"),
    *("sklearn", "skimage", "boto3"),
)


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Modules that a file imports, and whether it does so when it is imported itself."""
    tree = ast.parse(path.read_text())
    at_once = {
        child for node in tree.body if not isinstance(node, ast.If) for child in _outside(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node in at_once) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module, node in at_once


def _outside(node: ast.AST) -> Iterator[ast.AST]:
    """The node and all below it that are not in a function."""
    yield node
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
        for child in ast.iter_child_nodes(node):
            yield from _outside(child)


def package(module: str) -> str:
    return module.partition(".")[0]


@pytest.mark.parametrize("path", CONVERTERS, ids=lambda path: path.name)
def test_converters_know_neither_backend_nor_torch(path: Path) -> None:
    forbidden = {"backend", "torch", "torchvision", "flask", "label_studio_ml", "label_studio"}
    assert {package(module) for module, _ in imports(path)} & forbidden == set()


@pytest.mark.parametrize("path", [*CONVERTERS, *BACKEND], ids=lambda path: path.name)
def test_one_module_knows_label_studios_sdk(path: Path) -> None:
    knows = "label_studio_sdk" in {package(module) for module, _ in imports(path)}
    assert knows == (path == SDK_MODULE)


def test_code_never_imports_tests_or_benchmarks() -> None:
    own = {"tests", "benchmarks", "installation", "conftest", "pytest", "hypothesis"}
    found = {path: {package(m) for m, _ in imports(path)} & own for path in [*CONVERTERS, *BACKEND]}
    assert {path.name: names for path, names in found.items() if names} == {}


def test_no_pickle() -> None:
    """What is read from disk or from the network is never unpickled at large."""
    unsafe = {"pickle", "cPickle", "dill", "joblib", "shelve", "marshal"}
    files = [*CONVERTERS, *BACKEND]
    found = {path.name for path in files if {package(m) for m, _ in imports(path)} & unsafe}
    assert found <= {"array_pickle.py"}
    loading = [
        path.name
        for path in BACKEND
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load"
    ]
    assert loading == []


ENVIRONMENT = os.environ | {"CELLAI_LABEL_STUDIO_API_KEY": "x"}  # without it gunicorn ends


def loaded_by(module: str, *, then: str = "") -> set[str]:
    """Heavy packages in memory after a fresh interpreter has imported a module and run a line."""
    code = f"import {module}, sys; {then}\nprint(*[n for n in {HEAVY!r} if n in sys.modules])"
    answer = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env=ENVIRONMENT,
    )
    return set(answer.stdout.split())


@pytest.mark.parametrize(
    "module", ["converters.doctor", "converters.label_studio", "converters.backend_client"]
)
def test_light_modules_stay_light(module: str) -> None:
    assert loaded_by(module) <= {"skimage"}


def test_command_loads_neither_torch_nor_the_sdk() -> None:
    assert (
        loaded_by("converters.cli")
        & {"torch", "torchvision", "label_studio_sdk", "sklearn", "boto3"}
        == set()
    )


def test_settings_are_light() -> None:
    """gunicorn's configuration reads them in the process that must answer signals."""
    assert loaded_by("backend.gunicorn_conf") == set()


def test_web_processes_share_what_they_import() -> None:
    """Otherwise one that takes a killed one's place answers four seconds later."""
    before_forking = "backend.gunicorn_conf.when_ready(None)"
    assert "torch" in loaded_by("backend.gunicorn_conf", then=before_forking)


@pytest.mark.parametrize("module", ["backend.worker", "backend.model"])
def test_backend_starts_and_trains_with_torch_alone(module: str) -> None:
    """Each of the others takes two to four seconds, at every start and after every kill."""
    training = (
        "import numpy as np; from backend.networks import build_network; build_network('vgg16');"
        "from backend.training import TrainingSettings, fit;"
        "fit(np.eye(8, dtype='f4'), np.arange(8) % 2, list('abcdefgh'), n_classes=2,"
        " settings=TrainingSettings(least_steps=3))"
    )
    assert loaded_by(module, then=training) <= {"torch", "skimage"}
