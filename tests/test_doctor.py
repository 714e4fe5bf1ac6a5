"""What ``ouroboros doctor`` says; the number of threads; libraries built ahead; the wheel's build hook."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hatchling.bridge.app import Application

import hatch_build
import ouroboros
from ouroboros import cli, diagnosis, opening
from ouroboros.cores import Cores
from ouroboros.errors import InputError
from ouroboros.kernels import building, library

find: Any = library.library.__wrapped__
needed = pytest.mark.skipif(isinstance(library.library(), str), reason=f"no kernels: {library.library()}")


def written(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


# --------------------------------------------------------------------------------------------------------- threads


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({}, None),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, None),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "250000 100000\n"}, 2.5),
        (  # the narrowest of those above
            {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/cpu.max": "300000 100000\n",
                "sys/fs/cgroup/a/b/cpu.max": "400000 100000\n",
            },
            3.0,
        ),
        (  # version 1 in a container: the path is the host's
            {
                "proc/self/cgroup": "4:cpu,cpuacct:/docker/0123\n2:memory:/docker/0123\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "150000\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            },
            1.5,
        ),
        (
            {
                "proc/self/cgroup": "1:cpu:/\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            None,
        ),
        ({"proc/self/cgroup": "what\n0::/\n", "sys/fs/cgroup/cpu.max": "100000 0\n"}, None),
    ],
)
def test_a_containers_limit(tmp_path: Path, files: dict[str, str], quota: float | None) -> None:
    assert Cores.here(written(tmp_path, files)).quota == quota


def test_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processors of one core count once, and only where this process may run."""
    pairs = {f"sys/devices/system/cpu/cpu{n}/topology/thread_siblings_list": f"{n % 4},{n % 4 + 4}\n" for n in range(8)}
    written(tmp_path, pairs)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 4, 5}, raising=False)
    found = Cores.here(tmp_path)
    assert found == Cores(processors=8, allowed=5, physical=3, quota=None)
    assert found.threads == 3


@pytest.mark.parametrize(("quota", "threads"), [(None, 16), (2.0, 2), (2.9, 2), (0.5, 1), (64.0, 16)])
def test_threads_by_default(quota: float | None, threads: int) -> None:
    assert Cores(64, 32, 16, quota).threads == threads


@pytest.mark.parametrize(
    ("before", "asked", "environment", "after"),
    [
        (32, None, {}, 2),  # PyTorch's choice in a container that may use two
        (16, None, {}, 2),
        (7, None, {}, 7),  # somebody's
        (1, None, {}, 1),
        (32, None, {"OMP_NUM_THREADS": "32"}, 32),
        (32, 5, {}, 5),
    ],
)
def test_use_threads(
    before: int, asked: int | None, environment: dict[str, str], after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [before]
    for name in opening.CHOSEN:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch, "get_num_threads", lambda: now[0])
    monkeypatch.setattr(torch, "set_num_threads", lambda n: now.__setitem__(0, n))
    monkeypatch.setattr(Cores, "here", lambda: Cores(64, 32, 16, 2.0))
    opening.use_threads(asked)
    assert now == [after]


@pytest.mark.parametrize("threads", [0, -1, 1025, 2.0, True, "2"])
def test_threads_are_checked(threads: Any) -> None:
    with pytest.raises(InputError, match="threads must be None or a whole number from 1 to 1024, not "):
        ouroboros.load(threads=threads)


# ---------------------------------------------------------------------------------------------------------- doctor


def test_doctor_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--json", "--no-speed"]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert err == ""
    assert out.count("\n") == 1
    parts = ["versions", "processor", "threads", "memory", "engine", "gpus", "caches", "formats", "measured"]
    assert sorted(found) == sorted(parts)
    assert found["versions"]["ouroboros"] == ouroboros.__version__
    assert found["versions"]["torch"] == torch.__version__
    assert found["threads"]["in_use"] == torch.get_num_threads()
    assert found["engine"]["instructions"] == library.instructions()
    assert (found["engine"]["name"] == "kernels") == (not isinstance(library.library(), str))
    assert set(found["formats"]) == set(diagnosis.FORMATS)
    assert not any("bytes_per_second" in one for one in found["formats"].values())
    assert found["measured"] == {"bytes_per_second": None, "multiplications_per_second": None}


def test_doctor_as_text(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnosis, "FORMATS", ("float32",))
    monkeypatch.setattr(diagnosis, "speeds_of", lambda info: SimpleNamespace(bytes=21e9, products=3.4e10, layer=1e-5))
    assert cli.main(["doctor"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    words = "processor|threads|engine|21.0|34.0|read at 21.0 GB/s|GPU|cache: kernels|torch"
    for word in words.split("|"):
        assert word in out


def test_doctor_refuses(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--threads", "0"]) == 2
    assert capsys.readouterr() == ("", "ouroboros: error: --threads must be a whole number from 1 to 1024, not 0\n")


def test_doctor_where_there_is_nothing(tmp_path: Path) -> None:
    """No compiler, no home that can be written to: it says what computes instead, and why."""
    kept = {"PATH": str(tmp_path), "HOME": "/dev/null", "OMP_NUM_THREADS": "1"}
    kept["PYTHONPATH"] = str(Path(ouroboros.__file__).parent.parent)
    command = [sys.executable, "-m", "ouroboros.cli", "doctor", "--no-speed", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env=kept, timeout=100, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert found["engine"]["compiler"] is None
    assert not found["caches"]["kernels"]["writable"]
    if not library.built_ahead() and not isinstance(library.library(), str):
        assert (found["engine"]["name"], found["engine"]["why"]) == ("pytorch", "no C++ compiler (g++ not found)")
        assert found["formats"]["float32"]["engine"] == "plain (no C++ compiler (g++ not found))"
        assert found["formats"]["stored"]["engine"] is None


@needed
def test_samples_of_every_format() -> None:
    """Each can be measured, weights as GGUF files hold them too, and says what computes it."""
    for name in diagnosis.FORMATS:
        info = diagnosis.sample_info(name)
        assert (info.dtype, info.engine) == (name, "kernels")
        assert info.work.bytes > 0


# ----------------------------------------------------------------------------------------------------- built ahead


@pytest.fixture
def ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a library of this machine's set is looked for; there is no compiler, and nothing in the cache."""
    name = library.instructions()
    assert name is not None
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("CXX", "no-such-compiler")
    file = tmp_path / "ahead.so"
    monkeypatch.setattr(library, "built_ahead", lambda: {name: file} if file.exists() else {})
    return file


@needed
def test_built_ahead(ahead: Path, tmp_path: Path) -> None:
    """It is loaded, and nothing is compiled or written."""
    assert find() == "no C++ compiler (no-such-compiler not found)"
    shutil.copy(str(library.library_file()), ahead)
    found = find()
    assert found._name == str(ahead)
    assert found.ouroboros_instructions().decode() == library.instructions()
    assert not (tmp_path / "cache").exists()


@needed
def test_built_ahead_for_another_system(
    ahead: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What cannot be loaded is compiled here, and a line says so."""
    ahead.write_bytes(b"no library of this system")
    compiler = tmp_path / "compiler"
    compiler.write_text(f'#!/bin/sh\ncp {library.library_file()} "$3"\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    with caplog.at_level(logging.WARNING, "ouroboros"):
        found = find()
    assert Path(found._name).is_relative_to(tmp_path / "cache")
    (line,) = caplog.messages
    assert line.startswith(f"compiling the C++ kernels for {library.instructions()}, once: the one that")
    with caplog.at_level(logging.WARNING, "ouroboros"):
        find()
    assert len(caplog.messages) == 1  # kept


def test_names_of_what_is_built_ahead(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Other sources have another name, so that a library of old ones is never loaded. What Python leaves beside them
    (``library.cpython-311.pyc``) is none of them."""
    assert {path.suffix for path in building.SOURCES} == {".h", ".cpp"}
    name = building.built_file("avx2")
    assert name == building.built_file("avx2") != building.built_file("avx512")
    (tmp_path / "x.h").write_text("//")
    monkeypatch.setattr(building, "SOURCES", [*building.SOURCES, tmp_path / "x.h"])
    assert building.built_file("avx2") != name


def hook(root: Path, app: object = None) -> hatch_build.KernelsHook:
    return hatch_build.KernelsHook(str(root), {}, None, None, str(root), "wheel", app or Application())


ROOT = Path(hatch_build.__file__).parent


@pytest.mark.parametrize("value", [None, "0"])
def test_a_wheel_for_any_platform(value: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(hatch_build.SWITCH, raising=False)
    if value is not None:
        monkeypatch.setenv(hatch_build.SWITCH, value)
    data: dict[str, Any] = {"force_include": {}}
    one = hook(ROOT)
    one.initialize("standard", data)
    one.finalize("standard", data, "")
    assert data == {"force_include": {}}


def test_a_wheel_with_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every set of the machine, each under the name that it is looked for; nothing stays behind."""

    def compile_ahead(compiler: str, file: Path, name: str) -> None:
        file.write_text(f"{compiler} {name}")

    monkeypatch.setenv(hatch_build.SWITCH, "1")
    fake = SimpleNamespace(
        variants=lambda system, machine: ("avx512", "avx2"),
        find_compiler=lambda: "g++",
        built_file=building.built_file,
        compile_ahead=compile_ahead,
    )
    monkeypatch.setattr(hatch_build, "_building", lambda root: fake)
    data: dict[str, Any] = {"force_include": {}}
    one = hook(ROOT)
    one.initialize("standard", data)
    included = {inside: Path(file) for file, inside in data["force_include"].items()}
    assert {inside: file.read_text() for inside, file in included.items()} == {
        f"ouroboros/kernels/{building.built_file(name)}": f"g++ {name}" for name in ("avx512", "avx2")
    }
    assert data["tag"].startswith("py3-none-")
    assert data["pure_python"] is False
    one.finalize("standard", data, "")
    assert not any(file.exists() for file in included.values())
    editable: dict[str, Any] = {"force_include": {}}
    hook(ROOT).initialize("editable", editable)
    assert editable == {"force_include": {}}
    fake.variants = lambda system, machine: ()
    nothing: dict[str, Any] = {"force_include": {}}
    warned: list[str] = []
    hook(ROOT, SimpleNamespace(display_warning=warned.append)).initialize("standard", nothing)
    assert nothing == {"force_include": {}}
    assert len(warned) == 1


def test_the_switch_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(hatch_build.SWITCH, "yes")
    with pytest.raises(ValueError, match="OUROBOROS_BUILD_KERNELS must be 0 or 1, not 'yes'"):
        hook(ROOT).initialize("standard", {"force_include": {}})


@needed
@pytest.mark.slow
@pytest.mark.parametrize("name", building.NEEDED)
def test_compiled_ahead(name: str, ahead: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It asks for no OpenMP library of its own, has the set's instructions, and computes what the other computes."""
    monkeypatch.delenv("CXX")
    building.compile_ahead(building.find_compiler(), ahead, name)
    asked = subprocess.run(["readelf", "-d", str(ahead)], capture_output=True, text=True, check=True).stdout
    assert "libgomp" not in asked
    here, there = library.library(name), find(name)
    if isinstance(here, str):
        pytest.skip(here)
    assert there._name == str(ahead)
    assert there.ouroboros_instructions().decode() == name
    a, b = torch.empty(1000), torch.empty(1000)
    for found, out in ((here, a), (there, b)):
        found.ouroboros_noise(7, 3, 1000, out.data_ptr())
    assert torch.equal(a, b)
