"""The C++ kernels: found built ahead beside this file, or compiled when they are first needed; loaded with ctypes.

What is compiled here is kept in the user's cache directory, named by a hash of everything that the machine code
depends on, and a finished file is moved there in one step, so that any number of processes may start at once. Nothing
here ever raises: without a compiler, a known processor or a place to write, ``library`` says why, and the operators of
PyTorch and NumPy do the work. CXX names the compiler, as it does for other programs.

One source is compiled for the better of two sets of instructions that the processor has. They add up in different
orders and so round differently; on each for itself a row's bits depend on nothing else in its forward.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import ctypes.util
import hashlib
import logging
import os
import platform
import re
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch

from ouroboros.directories import cache_directory
from ouroboros.kernels.building import (
    NATIVE,
    NEEDED,
    OPTIONS,
    SOURCES,
    UnavailableError,
    built_file,
    compile_kernels,
    find_compiler,
    variants,
)

__all__ = ["abilities", "built_ahead", "instructions", "library", "library_file"]

_LOGGER = logging.getLogger("ouroboros")
OPENMP = re.compile(r"/lib(?:gomp|iomp5|omp)[-.\w]*$")  # libraries with the functions that GCC's -fopenmp calls


@cache
def library(name: str | None = None) -> ctypes.CDLL | str:
    """The loaded library, or in a few words why there is none. ``name``: of NEEDED, in place of the best."""
    try:
        flags = abilities()
        return _declared(_load(" ".join(flags), _chosen(flags, name)))
    except UnavailableError as error:
        return str(error)
    except (OSError, subprocess.SubprocessError, AttributeError) as error:
        return f"{type(error).__name__}: {error}"


def instructions() -> str | None:
    """The set of instructions that ``library`` is compiled for, of NEEDED; None where there is no library."""
    found = library()
    return None if isinstance(found, str) else found.ouroboros_instructions().decode()


def library_file() -> Path | None:
    """Where ``library`` was loaded from."""
    found = library()
    return None if isinstance(found, str) else Path(found._name)


def built_ahead() -> dict[str, Path]:
    """The libraries that this installation brings, by their sets of instructions."""
    paths = {name: Path(__file__).parent / built_file(name) for name in NEEDED}
    return {name: path for name, path in paths.items() if path.is_file()}


def abilities() -> list[str]:
    """The processor's, as Linux names them; none where it does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    return sorted(next((line.split(":", 1)[1].split() for line in lines if line.startswith("flags")), []))


def _chosen(flags: Sequence[str], name: str | None) -> str:
    """The best set that the processor has, or this one if it has it."""
    if not variants(sys.platform, platform.machine()):
        raise UnavailableError(f"no kernels for {sys.platform} on {platform.machine()}")
    missing = ""
    for each in [name] if name else NEEDED:
        lacks = [flag for flag in NEEDED[each] if flag not in flags]
        if not lacks:
            return each
        missing = lacks[0]
    raise UnavailableError(f"the processor lacks {missing}")


def _load(processor: str, name: str) -> ctypes.CDLL:
    reason = "this installation brings no library for it"
    if built := built_ahead().get(name):
        try:
            _offer_openmp()
            return ctypes.CDLL(str(built))
        except OSError as error:
            reason = f"the one that this installation brings cannot be loaded: {error}"
    compiler = find_compiler()
    parts = [source.read_bytes() for source in SOURCES]
    parts += [str(x).encode() for x in (compiler, OPTIONS, NATIVE[name], torch.__version__, processor)]
    key = hashlib.sha256(b"\0".join(parts)).hexdigest()[:24]
    file = _cache_directory() / f"decoder-{key}.so"
    if file.is_file():
        try:
            return ctypes.CDLL(str(file))
        except OSError:  # damaged: made anew below
            file.unlink(missing_ok=True)
    _LOGGER.warning("compiling the C++ kernels for %s, once: %s", name, reason)
    compile_kernels(compiler, file, [*OPTIONS, *NATIVE[name]], _torch_openmp())
    return ctypes.CDLL(str(file))


def _torch_openmp() -> list[str]:
    """The threads are those of PyTorch: where its wheel brings an OpenMP library under another name, link that one."""
    root = Path(torch.__file__).parent
    folders = (root / "lib", root.parent / "torch.libs")
    return [str(path) for folder in folders for path in folder.glob("libgomp*.so*")][:1]


def _offer_openmp() -> None:
    """What is built ahead takes OpenMP's functions from whoever has them in this process. PyTorch mostly offers its own
    to all; where it keeps them to itself, they are offered here."""
    try:
        ctypes.CDLL(None).GOMP_parallel  # noqa: B018
    except AttributeError:
        try:
            maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            maps = []
        loaded = [line[line.index("/") :] for line in maps if OPENMP.search(line)]
        names = [*loaded, *_torch_openmp(), ctypes.util.find_library("gomp") or ""]
        found = next((name for name in names if name), None)
        if found is not None:
            ctypes.CDLL(found, mode=ctypes.RTLD_GLOBAL)


def _cache_directory() -> Path:
    """A directory that can be written to: the user's own; or one in the temporary directory that is this user's alone,
    so that code in it is nobody else's; or one that goes when this process ends."""
    path = cache_directory() / "kernels"
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            return path
    except OSError:
        pass
    if hasattr(os, "getuid"):
        path = Path(tempfile.gettempdir()) / f"ouroboros-kernels-{os.getuid()}"
        with contextlib.suppress(OSError):
            path.mkdir(mode=0o700, exist_ok=True)
            found = path.lstat()
            if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o022:
                return path
    path = Path(tempfile.mkdtemp(prefix="ouroboros-kernels-"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


def _declared(found: ctypes.CDLL) -> ctypes.CDLL:
    integer, pointer = ctypes.c_int, ctypes.c_void_p
    found.ouroboros_instructions.restype = ctypes.c_char_p
    found.ouroboros_sizes.argtypes = [pointer]
    found.ouroboros_sizes.restype = None
    found.ouroboros_check.argtypes = [pointer, pointer, integer, integer, *(pointer, integer), *(pointer, integer)]
    found.ouroboros_packed_size.argtypes = [integer] * 4
    found.ouroboros_packed_size.restype = ctypes.c_int64
    found.ouroboros_pack.argtypes = [integer, pointer, integer, integer, integer, pointer, pointer]
    found.ouroboros_pack.restype = None
    found.ouroboros_stored_size.argtypes = [integer] * 3
    found.ouroboros_stored_size.restype = ctypes.c_int64
    found.ouroboros_stored_pack.argtypes = [integer, pointer, integer, integer, pointer]
    found.ouroboros_stored_pack.restype = None
    found.ouroboros_stored_product.argtypes = [pointer, pointer, integer, pointer]
    found.ouroboros_stored_product.restype = None
    found.ouroboros_forward.argtypes = [
        *(pointer, pointer, integer, pointer, pointer),
        *(pointer, integer, pointer, integer, pointer, integer),
    ]
    found.ouroboros_noise.argtypes = [ctypes.c_uint64, ctypes.c_uint64, integer, pointer]
    found.ouroboros_noise.restype = None
    found.ouroboros_guess.argtypes = [
        *(ctypes.c_uint64, ctypes.c_uint64, ctypes.c_float),
        *(integer, pointer, pointer, integer, pointer, pointer),
    ]
    found.ouroboros_choose.argtypes = [
        *(integer, pointer, ctypes.c_int64, integer, integer, ctypes.c_float, pointer, integer),
        *(pointer, pointer, pointer, integer, pointer, pointer),
    ]
    found.ouroboros_keep.argtypes = [pointer, *[ctypes.c_int64] * 4, pointer, integer]
    return found
