"""The container files: valid, without secrets, closed to the network, and in step with the code."""

import ast
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.util import find_spec
from pathlib import Path
from threading import Thread
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
import yaml
from compose_file import COMPOSE, OPTIONAL, REQUIRED, filled_in, given, read_compose

from backend.settings import read_settings
from converters.screen import EDITOR_KEYMAP

ROOT = Path(__file__).parents[1]
DOCKERFILE = ROOT / "Dockerfile"
ENV_EXAMPLE = ROOT / ".env.example"
GPU_COMPOSE = ROOT / "deploy" / "compose.gpu.yml"
SCHEMA = ROOT / "tests" / "compose_spec" / "compose-spec.json"


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return read_compose()


@pytest.fixture(scope="module")
def services(compose: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = compose["services"]
    return found


@pytest.fixture(scope="module")
def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions and their arguments."""
    joined = DOCKERFILE.read_text().replace("\\\n", " ")
    lines = [line for line in joined.splitlines() if line and not line.startswith("#")]
    return [(name, rest.strip()) for name, _, rest in (line.partition(" ") for line in lines)]


def example_variables() -> dict[str, str]:
    lines = ENV_EXAMPLE.read_text().splitlines()
    pairs = (line.partition("=") for line in lines if line and not line.startswith("#"))
    return {name: value for name, _, value in pairs}


def test_compose_files_follow_the_specification(compose: dict[str, Any]) -> None:
    schema = json.loads(SCHEMA.read_text())
    validator = jsonschema.Draft202012Validator(schema)
    for content in (compose, yaml.safe_load(GPU_COMPOSE.read_text())):
        assert [error.message for error in validator.iter_errors(content)] == []
    wrong = compose | {"services": {"backend": {"image": "x", "prots": ["1:1"]}}}
    assert [error.validator for error in validator.iter_errors(wrong)] == ["unevaluatedProperties"]


def test_file_for_a_gpu_changes_the_backend_alone(
    services: dict[str, Any], instructions: list[tuple[str, str]]
) -> None:
    changed = yaml.safe_load(GPU_COMPOSE.read_text())["services"]
    assert changed.keys() == {"backend"} <= services.keys()
    assert changed["backend"]["image"] == f"{services['backend']['image']}-gpu"
    arguments = {rest.partition("=")[0] for name, rest in instructions if name == "ARG"}
    assert changed["backend"]["build"]["args"].keys() <= arguments


def test_no_secret_stands_in_a_file(services: dict[str, Any]) -> None:
    secrets = re.compile(r"PASSWORD|TOKEN|KEY\b|SECRET")
    set_here = [
        (name, value)
        for service in services.values()
        for name, value in given(service).items()
        if secrets.search(name) and name != "LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN"
    ]
    assert len(set_here) >= 6
    assert [name for name, value in set_here if not REQUIRED.fullmatch(value)] == []
    for file in (COMPOSE, DOCKERFILE, ENV_EXAMPLE):
        assert re.findall(r"\b[0-9a-f]{20,}\b|eyJ\w+", file.read_text()) == []


def test_every_secret_is_asked_for_and_has_no_default() -> None:
    asked = set(REQUIRED.findall(COMPOSE.read_text()))
    assert example_variables() == dict.fromkeys(asked, "")
    offered = {name for name, _ in OPTIONAL.findall(COMPOSE.read_text())}
    assert all(f"#{name}=" in ENV_EXAMPLE.read_text() for name in offered)


def test_ports_are_open_to_this_computer_only(services: dict[str, Any]) -> None:
    ports = {name: service.get("ports", []) for name, service in services.items()}
    assert ports["database"] == []
    open_ports = [filled_in(port) for found in ports.values() for port in found]
    assert sorted(open_ports) == ["127.0.0.1:8080:8080", "127.0.0.1:9090:9090"]


def test_images_are_pinned(services: dict[str, Any], instructions: list[tuple[str, str]]) -> None:
    images = [service["image"] for service in services.values()]
    images += [rest for name, rest in instructions if name == "FROM"]
    images = [image.removesuffix(" AS build") for image in images]
    assert len(images) == 5
    assert [image for image in images if not re.search(r":\d+\.\d+(\.\d+)?(-\w+)*$", image)] == []


def test_label_studio_is_the_version_that_is_tested(services: dict[str, Any]) -> None:
    version = services["label-studio"]["image"].partition(":")[2]
    assert f"label-studio=={version}" in (ROOT / "requirements.txt").read_text().split()


def test_logs_of_every_service_are_bounded(services: dict[str, Any]) -> None:
    limits = {name: service["logging"]["options"] for name, service in services.items()}
    assert limits == {name: {"max-size": "10m", "max-file": "3"} for name in services}


def test_every_service_waits_for_healthy_ones(services: dict[str, Any]) -> None:
    assert all("healthcheck" in service for service in services.values())
    waits = {
        name: {other: condition["condition"] for other, condition in service["depends_on"].items()}
        for name, service in services.items()
        if "depends_on" in service
    }
    assert waits == {
        "label-studio": {"database": "service_healthy"},
        "backend": {"label-studio": "service_healthy"},
    }


@pytest.fixture
def server() -> Iterator[HTTPServer]:
    class Handler(BaseHTTPRequestHandler):
        status = 200

        def do_GET(self) -> None:
            self.send_response(self.status if self.path == "/health" else 404)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Stay quiet."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def health_checks(services: dict[str, Any], instructions: list[tuple[str, str]]) -> list[list[str]]:
    compose = [services[name]["healthcheck"]["test"][1:] for name in ("label-studio", "backend")]
    (image,) = (rest.partition("CMD ")[2] for name, rest in instructions if name == "HEALTHCHECK")
    return [*compose, json.loads(image)]


def test_health_checks_tell_well_from_ill(
    services: dict[str, Any], instructions: list[tuple[str, str]], server: HTTPServer
) -> None:
    handler: Any = server.RequestHandlerClass
    for _python, option, code in health_checks(services, instructions):
        command = [sys.executable, option, re.sub(r":\d{4}/", f":{server.server_port}/", code)]
        assert str(server.server_port) in command[2]
        for status, is_well in ((200, True), (500, False)):
            handler.status = status
            answer = subprocess.run(command, check=False, capture_output=True)
            assert (answer.returncode == 0) == is_well


def start_command(instructions: list[tuple[str, str]]) -> list[str]:
    (command,) = (rest for name, rest in instructions if name == "CMD")
    arguments: list[str] = json.loads(command)
    return arguments


def test_container_starts_what_the_launcher_starts(instructions: list[tuple[str, str]]) -> None:
    tree = ast.parse((ROOT / "converters" / "launcher.py").read_text())
    commands = [
        [element.value for element in node.elts if isinstance(element, ast.Constant)]
        for node in ast.walk(tree)
        if isinstance(node, ast.List | ast.Tuple)
    ]
    arguments = start_command(instructions)[1:]
    assert "backend._wsgi:app" in arguments
    assert [command for command in commands if "backend._wsgi:app" in command] == [arguments]


def test_container_listens_on_the_port_it_publishes(services: dict[str, Any]) -> None:
    environment = {name: filled_in(v) for name, v in given(services["backend"]).items()}
    own = {name: value for name, value in os.environ.items() if not name.startswith("CELLAI_")}
    answer = subprocess.run(
        [sys.executable, "-c", "from backend.gunicorn_conf import bind; print(bind)"],
        cwd=ROOT,
        env=own | environment,
        check=False,
        capture_output=True,
        text=True,
    )
    assert answer.stdout.strip() == "0.0.0.0:9090", answer.stderr


def test_backend_understands_its_environment(
    services: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in list(os.environ):
        if name.startswith(("CELLAI_", "LABEL_STUDIO_")):
            monkeypatch.delenv(name)
    for name, value in given(services["backend"]).items():
        monkeypatch.setenv(name, filled_in(value))
    settings = read_settings()
    assert settings.label_studio_url == "http://label-studio:8080"
    assert settings.label_studio_api_key.get_secret_value() == "secret"
    assert settings.basic_auth_password.get_secret_value() == "secret"
    assert (settings.host, settings.port) == ("0.0.0.0", 9090)  # noqa: S104  inside the container


def test_keys_are_those_of_the_launcher(services: dict[str, Any]) -> None:
    keymap = services["label-studio"]["environment"]["EDITOR_KEYMAP"]
    assert json.loads(keymap) == json.loads(EDITOR_KEYMAP)


def test_label_studio_knows_its_settings(services: dict[str, Any]) -> None:
    package = find_spec("label_studio")
    if package is None or package.origin is None:
        pytest.skip("Label Studio is not installed here")
    folder = Path(package.origin).parent
    files = [
        folder / "server.py",
        folder / "io_storages" / "s3" / "utils.py",
        *(folder / "core" / "settings").glob("*.py"),
    ]
    source = "\n".join(file.read_text() for file in files)
    known = set(re.findall(r"get\w*_env\w*\(\s*['\"](\w+)['\"]", source))
    names = services["label-studio"]["environment"]
    assert [n for n in names if not {n, n.removeprefix("LABEL_STUDIO_")} & known] == []
    assert names["USE_DEFAULT_BANNED_SUBNETS"] == "false"
    assert names["USER_ADDITIONAL_BANNED_SUBNETS"] == "169.254.0.0/16"


def test_pictures_are_on_a_volume_that_both_see(compose: dict[str, Any]) -> None:
    services = compose["services"]
    assert "files" in compose["volumes"]
    assert "files:/files" in services["backend"]["volumes"]
    assert "files:/files:ro" in services["label-studio"]["volumes"]
    assert services["backend"]["environment"]["CELLAI_FILES_DIR"] == "/files"
    root = services["label-studio"]["environment"]["LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT"]
    assert root == "/files"


def test_image_runs_as_a_user_and_holds_no_secret(instructions: list[tuple[str, str]]) -> None:
    names = [name for name, _ in instructions]
    users = [rest for name, rest in instructions if name == "USER"]
    assert users == ["cellai"]
    assert names.index("USER") < names.index("CMD")
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in ignored
    copied = [r for name, r in instructions if name == "COPY" and not r.startswith("--from")]
    sources = {part for rest in copied for part in shlex.split(rest)[:-1]}
    assert {f"!{source}" for source in sources} == {line for line in ignored if line[0] == "!"}
    assert all((ROOT / source).exists() for source in sources)


def test_backend_may_do_as_little_as_possible(services: dict[str, Any]) -> None:
    backend = services["backend"]
    assert backend["cap_drop"] == ["ALL"]
    assert "cap_add" not in backend
    assert "privileged" not in backend
    assert backend["read_only"] is True
    targets = {volume.split(":")[1] for volume in backend["volumes"]}
    assert targets == {"/data", "/files"}
    (scratch,) = backend["tmpfs"]
    assert scratch.startswith("/tmp:")  # noqa: S108  in the container
    assert {"noexec", "nosuid", "nodev"} <= set(scratch.partition(":")[2].split(","))
    for service in services.values():
        assert "no-new-privileges:true" in service["security_opt"]


def test_image_that_runs_holds_no_tool_that_installs(instructions: list[tuple[str, str]]) -> None:
    starts = [index for index, (name, _) in enumerate(instructions) if name == "FROM"]
    final = instructions[starts[-1] :]
    assert len(starts) == 2
    commands = " ".join(rest for name, rest in final if name == "RUN")
    assert not re.search(r"\bapt|\buv |\binstall (?!--directory)", commands)
    assert "pip uninstall --yes" in commands
    copied = [rest for name, rest in final if name == "COPY"]
    assert copied == ["--from=build /venv /venv", "--from=build /app /app"]
    assert "venv --without-pip /venv" in " ".join(rest for _, rest in instructions[: starts[-1]])


def test_filled_in_env_file_is_not_committed() -> None:
    assert ".env" in (ROOT / ".gitignore").read_text().splitlines()
