"""Version folders that would take a worker's memory, time or disk: a few bytes that ask for gigabytes."""

from __future__ import annotations

import mmap
import os
import resource
import socket
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from inference.errors import ContractError, ModelError
from inference.models import ModelHost, ModelRegistry, Rollout, versions
from inference.models.formats import check_archive
from inference.models.load_limits import LoadLimits, bounded_growth, limit_process, machine_memory
from inference.models.loading import inspect_version_in_subprocess, load_version, try_version
from inference.models.registry import VersionRecord
from inference.models.versions import files_in, fingerprint
from inference.onboarding.trial import TrialRequest, try_row_in_subprocess
from inference.redis.clients import Client
from inference.redis.keys import Keys
from inference.settings import Settings, WorkerSettings
from tests.support.models import add_times_version, write_features
from tests.support.plain_onnx import tensor, write_onnx, write_times

linux = pytest.mark.skipif(sys.platform != "linux", reason="no other system bounds a process in this way")
GIB = 1 << 30
#: of numbers of four bytes: 1.2 TB
HUGE = np.array([300_000_000_000])


def write_bomb(folder: Path) -> None:
    """Write a version of 300 bytes that asks for 1.2 TB when it answers its first row: x [rows] float32 → y [rows]."""
    nodes = [
        helper.make_node("ConstantOfShape", ["size"], ["filled"]),
        helper.make_node("RandomUniformLike", ["filled"], ["noise"], dtype=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["noise"], ["all"], keepdims=0),
        helper.make_node("Add", ["x", "all"], ["y"]),
    ]
    write_onnx(folder, nodes, [tensor("x")], [tensor("y")], size=HUGE)
    write_features(folder.parent, [{"name": "x", "dtype": "float32"}])


def settings_of(folder: Path, **workers: object) -> Settings:
    models = {"m": {"path": "m", "poll_every": "never"}}
    return Settings.of_folder(folder, models=models, workers=WorkerSettings.model_validate(workers))


@pytest.fixture
def good(tmp_path: Path) -> Path:
    add_times_version(tmp_path / "m", 1, 2.0)
    return tmp_path


# memory


@linux
def test_what_a_version_may_take_follows_its_files_and_the_machine(good: Path) -> None:
    folder, half = good / "m" / "1", max(machine_memory() // 2, 3 * GIB // 2)
    assert LoadLimits.of(WorkerSettings(), folder).memory_bytes == pytest.approx(min(3 * GIB, half), rel=0.01)
    with (folder / "hole").open("wb") as file:
        file.truncate(100 * GIB)
    assert LoadLimits.of(WorkerSettings(), folder).memory_bytes == pytest.approx(min(3 * GIB, half), rel=0.01)
    (folder / "weights").write_bytes(os.urandom(8 << 20))
    assert LoadLimits.of(WorkerSettings(), folder).memory_bytes >= min(3 * GIB + (128 << 20), half)
    assert LoadLimits.of(WorkerSettings.model_validate({"load_memory": "20 GB"}), folder).memory_bytes == 20 * 10**9


@linux
def test_a_version_that_takes_more_memory_is_refused_where_it_is_tried(tmp_path: Path) -> None:
    write_bomb(tmp_path / "m" / "1")
    with pytest.raises(
        ModelError, match=r"memory.*; loading a model may take .* GiB: raise load_memory under \[workers\]"
    ):
        inspect_version_in_subprocess(settings_of(tmp_path), "m", 1)


@linux
def test_a_process_that_grows_past_the_limit_is_ended_and_the_limit_is_named(good: Path) -> None:
    told = r"loading version 1 of model 'm' takes more than 0\.0 GiB of memory, .*: raise load_memory under \[workers\]"
    with pytest.raises(ModelError, match=told):
        inspect_version_in_subprocess(settings_of(good, load_memory="40 MB"), "m", 1)


@linux
def test_a_worker_that_starts_with_such_a_version_refuses_it_and_goes_on(tmp_path: Path, redis_client: Client) -> None:
    add_times_version(tmp_path / "m", 1, 2.0)
    write_bomb(tmp_path / "m" / "2")
    settings = settings_of(tmp_path)
    registry = ModelRegistry(redis_client, Keys("t"))
    host = ModelHost(settings, registry)
    host.start()
    refused = registry.versions("m")[2]
    assert refused.state == "refused"
    assert "raise load_memory under [workers]" in str(refused.error)
    assert host.get("m").predict({"x": np.ones(2, np.float32)})["y"].tolist() == [2.0, 2.0]
    assert resource.getrlimit(resource.RLIMIT_DATA)[0] == resource.RLIM_INFINITY, "the worker has its memory back"


@linux
def test_the_bound_on_a_worker_leaves_what_it_holds_already_alone() -> None:
    limits = LoadLimits(1 << 20, 60)

    def map_memory(size: int) -> None:
        mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).close()

    with bounded_growth(limits):
        map_memory(64 << 20)  # a little is always left for stacks and arenas
        bound = resource.getrlimit(resource.RLIMIT_DATA)[0]
        with pytest.raises((OSError, MemoryError)):
            map_memory(bound)
    map_memory(bound)


# time, files


def test_a_version_that_takes_too_long_is_ended_and_the_limit_is_named(good: Path) -> None:
    with pytest.raises(ModelError, match=r"could not be loaded within 0\.05 s: raise load_timeout under \[workers\]"):
        inspect_version_in_subprocess(settings_of(good, load_timeout="50ms"), "m", 1)


def test_init_tries_a_row_within_the_same_limits(good: Path) -> None:
    contract = load_version("m", good / "m", 1, good / "m" / "1").record.contract
    request = TrialRequest(
        model="m", path=str(good / "m"), version=1, contract=contract, source="nothing.parquet", entity_column="id"
    )
    with pytest.raises(ModelError, match=r"model 'm' could not be loaded within 0\.05 s: raise load_timeout"):
        try_row_in_subprocess(request, WorkerSettings(load_timeout=0.05))


@linux
def test_the_kernel_bounds_what_the_process_writes_opens_and_computes() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        limit_process(process.pid, LoadLimits(GIB, 60.0))
        told = Path(f"/proc/{process.pid}/limits").read_text()
        bounds = {line[:26].strip(): line[26:].split()[:2] for line in told.splitlines()}
        assert bounds["Max file size"] == [str(GIB)] * 2
        assert bounds["Max core file size"] == ["0", "0"]
        assert int(bounds["Max open files"][1]) <= 4096
        assert int(bounds["Max cpu time"][1]) == 60 * (os.cpu_count() or 1) + 1
        process.communicate(b"\n")


# archives


def write_archive(file: Path, sizes: dict[str, int]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, size in sizes.items():
            with archive.open(name, "w", force_zip64=True) as inside:
                for _ in range(size >> 20):
                    inside.write(b" " * (1 << 20))
    return file


@pytest.mark.parametrize("name", ["m.keras", "m.skops"])
def test_an_archive_that_unpacks_to_a_thousand_times_its_size_is_refused_unread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("inference.models.formats._UNPACKED_AT_LEAST", 6 << 20)
    file = write_archive(tmp_path / "m" / "1" / name, {"config.json": 2 << 20, "schema.json": 5 << 20})
    result = try_version("m", tmp_path / "m", 1, tmp_path / "m" / "1")
    assert isinstance(result, VersionRecord)
    assert f"{file} would unpack from {file.stat().st_size} to {7 << 20} bytes" in str(result.error)


def test_small_archives_and_files_that_are_none_pass(tmp_path: Path) -> None:
    check_archive(write_archive(tmp_path / "m.skops", {"schema.json": 4 << 20}))
    (tmp_path / "m.onnx").write_bytes(b"no archive")
    check_archive(tmp_path / "m.onnx")


def test_an_archive_of_too_many_files_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inference.models.formats._MOST_ARCHIVED_FILES", 3)
    file = write_archive(tmp_path / "m.skops", dict.fromkeys("abcd", 0))
    with pytest.raises(ModelError, match="holds 4 files, more than the 3 that a model may"):
        check_archive(file)


# folders


@pytest.mark.parametrize("kind", ["pipe", "socket"])
def test_pipes_and_sockets_are_refused_before_anything_waits_for_them(good: Path, kind: str) -> None:
    odd = good / "m" / "1" / "variables"
    if kind == "pipe":
        os.mkfifo(odd)
    else:
        with socket.socket(socket.AF_UNIX) as one, pytest.MonkeyPatch.context() as patch:
            patch.chdir(odd.parent)  # the path of a socket is short
            one.bind(odd.name)
    with pytest.raises(ModelError, match="variables is a pipe, a socket or a device: put a plain file there"):
        load_version("m", good / "m", 1, good / "m" / "1")


def test_a_folder_of_very_many_files_is_refused(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "MOST_FILES", 5)
    for number in range(3):
        (good / "m" / "1" / f"{number}").mkdir()
        (good / "m" / "1" / f"{number}" / "x").write_text("")
    with pytest.raises(ModelError, match="holds more than 5 files and folders: leave only the model there"):
        load_version("m", good / "m", 1, good / "m" / "1")
    assert len(list(files_in(good / "m" / "1"))) == 6


def test_folders_that_are_nested_too_deep_are_refused_and_other_versions_come_into_service(
    good: Path, redis_client: Client
) -> None:
    write_times(good / "m" / "2", 3.0)
    made = [good / "m" / "2"]
    try:
        for _ in range(1100):  # deeper than Python's stack
            made.append(made[-1] / "d")
            made[-1].mkdir()
        settings, registry = settings_of(good), ModelRegistry(redis_client, Keys("t"))
        host = ModelHost(settings, registry)
        rollout = Rollout(settings, host, registry, "m", answers=True, others=list)
        assert rollout.look(again=True)
    finally:
        for each in reversed(made[1:]):
            each.rmdir()
    assert registry.active("m").version == 1
    assert "holds more than 50 folders inside each other: make it flat" in str(registry.versions("m")[2].error)


def test_names_of_any_bytes_can_be_hashed(good: Path) -> None:
    before = fingerprint(good / "m" / "1")
    os.close(os.open(os.fsencode(good / "m" / "1") + b"/\xff", os.O_CREAT))
    assert fingerprint(good / "m" / "1") != before


@linux
def test_holes_are_not_read_and_count_as_zeros(good: Path) -> None:
    sparse, dense = good / "sparse", good / "dense"
    for folder in (sparse, dense):
        folder.mkdir()
        with (folder / "w").open("wb") as file:
            file.write(b"begin")
            if folder is dense:
                file.write(bytes(8 << 20))
            file.seek((8 << 20) + 5)
            file.write(b"end")
    assert fingerprint(sparse) == fingerprint(dense)
    (dense / "w").write_bytes((dense / "w").read_bytes().replace(b"end", b"enD"))
    assert fingerprint(sparse) != fingerprint(dense)
    with (sparse / "w").open("r+b") as file:
        file.truncate(50 * GIB)
    before = characters_read()
    fingerprint(sparse)
    assert characters_read() - before < 16 << 20


def characters_read() -> int:
    return int(Path("/proc/self/io").read_text().split()[1])


def test_zeros_in_another_place_are_another_version(good: Path) -> None:
    one, other = good / "one", good / "other"
    for folder, parts in ((one, (bytes(1 << 20), b"x" * (1 << 20))), (other, (b"x" * (1 << 20), bytes(1 << 20)))):
        folder.mkdir()
        (folder / "w").write_bytes(b"".join(parts))
    assert fingerprint(one) != fingerprint(other)


# small files


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[" * 200_000, "is not valid JSON: maximum recursion depth"),
        ('{"features": ' * 100_000, "is not valid JSON: maximum recursion depth"),
        (" " * (9 << 20), "cannot be read: it is larger than 8 MiB"),
    ],
)
def test_a_contract_that_no_person_wrote_is_refused_in_one_line(good: Path, text: str, told: str) -> None:
    (good / "m" / "features.json").write_text(text)
    with pytest.raises(ContractError, match=rf"features\.json {told}"):
        load_version("m", good / "m", 1, good / "m" / "1")


@pytest.mark.parametrize(
    ("text", "told"),
    [("a = " + "[" * 200_000, "maximum recursion depth"), ("#" * (9 << 20), "it is larger than 8 MiB")],
)
def test_a_description_of_an_engine_that_no_person_wrote_is_refused_in_one_line(
    tmp_path: Path, text: str, told: str
) -> None:
    (tmp_path / "remote.toml").write_text(text)
    with pytest.raises(ModelError, match=rf"remote\.toml cannot be loaded: {told}"):
        load_version("m", tmp_path, 1, tmp_path)


@pytest.mark.parametrize(
    ("outputs", "told"),
    [
        (["y" * 1_001], "the name of y+… has 1001 characters, and at most 1000"),
        (["y", "z"], "it has 3 inputs and outputs"),
    ],
)
def test_a_model_that_would_fill_its_record_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, outputs: list[str], told: str
) -> None:
    monkeypatch.setattr("inference.models.loading._MOST_TENSORS", 2)
    nodes = [helper.make_node("Identity", ["x"], [name]) for name in outputs]
    write_onnx(tmp_path / "1", nodes, [tensor("x")], [tensor(name) for name in outputs])
    with pytest.raises(ModelError, match=told):
        load_version("m", tmp_path, 1, tmp_path / "1")
