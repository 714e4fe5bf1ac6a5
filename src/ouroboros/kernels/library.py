"""The C++ kernels: compiled when they are first needed, kept in the user's cache directory, loaded with ctypes.

The file's name in the cache is a hash of everything that the machine code depends on, and a finished file is moved
there in one step, so that any number of processes may start at once. Nothing here ever raises: without a compiler, a
known processor or a place to write, ``library`` says why, and the operators of PyTorch and NumPy do the work. CXX
names the compiler, as it does for other programs.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import torch

from ouroboros.directories import cache_directory

__all__ = ["UnavailableError", "compile_kernels", "library"]

SOURCES = sorted(Path(__file__).parent.glob("*.[ch]*"))
NEEDED = ("avx512f", "avx512bw", "avx512dq", "avx512vl")
OPTIONS = ("-O3", "-std=c++17", "-march=native", "-fopenmp", "-fPIC", "-shared")
SECONDS = 300  # for a compiler that takes three


class UnavailableError(Exception):
    """Why there are no kernels here. It never leaves this package."""


@cache
def library() -> ctypes.CDLL | str:
    """The loaded library, or in a few words why there is none."""
    try:
        return _declared(_load(_processor()))
    except UnavailableError as error:
        return str(error)
    except (OSError, subprocess.SubprocessError, AttributeError) as error:
        return f"{type(error).__name__}: {error}"


def _processor() -> str:
    """The processor's abilities, as the kernel names them."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise UnavailableError(f"no kernels for {sys.platform} on {platform.machine()}")
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    flags = next((line.split(":", 1)[1].split() for line in lines if line.startswith("flags")), [])
    if missing := [flag for flag in NEEDED if flag not in flags]:
        raise UnavailableError(f"the processor lacks {missing[0]}")
    return " ".join(sorted(flags))


def _load(processor: str) -> ctypes.CDLL:
    compiler = _compiler()
    parts = [source.read_bytes() for source in SOURCES]
    parts += [str(x).encode() for x in (compiler, OPTIONS, torch.__version__, processor)]
    key = hashlib.sha256(b"\0".join(parts)).hexdigest()[:24]
    file = _cache_directory() / f"decoder-{key}.so"
    if file.is_file():
        try:
            return ctypes.CDLL(str(file))
        except OSError:  # damaged: made anew below
            file.unlink(missing_ok=True)
    compile_kernels(compiler, file)
    return ctypes.CDLL(str(file))


def _compiler() -> str:
    named = os.environ.get("CXX")
    for name in [named] if named else ["g++", "c++"]:
        if found := shutil.which(name):
            return found
    raise UnavailableError(f"no C++ compiler ({named or 'g++'} not found)")


def _cache_directory() -> Path:
    """A directory that can be written to; where the user's own cannot, one for this process alone."""
    path = cache_directory() / "kernels"
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            return path
    except OSError:
        return Path(tempfile.mkdtemp(prefix="ouroboros-kernels-"))


def compile_kernels(compiler: str, file: Path) -> None:
    """Compiles to a name of its own and then moves it to ``file``."""
    source = next(path for path in SOURCES if path.suffix == ".cpp")
    # The threads are those of PyTorch: where its wheel brings an OpenMP library under another name, link that one.
    root = Path(torch.__file__).parent
    openmp = [
        str(path) for folder in (root / "lib", root.parent / "torch.libs") for path in folder.glob("libgomp*.so*")
    ]
    number, temporary = tempfile.mkstemp(dir=file.parent, suffix=".so")
    os.close(number)
    try:
        command = [compiler, str(source), "-o", temporary, "-Wl,--as-needed", *openmp[:1], *OPTIONS]
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines() or ["?"]
            raise UnavailableError(f"{Path(compiler).name} failed: {errors[0].strip()[:120]}")
        os.replace(temporary, file)
    finally:
        Path(temporary).unlink(missing_ok=True)


def _declared(found: ctypes.CDLL) -> ctypes.CDLL:
    integer, pointer = ctypes.c_int, ctypes.c_void_p
    found.ouroboros_supports.argtypes = [integer]
    found.ouroboros_packed_size.argtypes = [integer] * 4
    found.ouroboros_packed_size.restype = ctypes.c_int64
    found.ouroboros_pack.argtypes = [integer, pointer, integer, integer, integer, pointer, pointer]
    found.ouroboros_pack.restype = None
    found.ouroboros_forward.argtypes = [pointer, pointer, integer, *[pointer] * 4, integer, pointer, integer]
    found.ouroboros_read.argtypes = [pointer, ctypes.c_int64, integer]
    found.ouroboros_read.restype = ctypes.c_float
    found.ouroboros_noise.argtypes = [ctypes.c_uint64, ctypes.c_uint64, integer, pointer]
    found.ouroboros_noise.restype = None
    found.ouroboros_guess.argtypes = [
        *(ctypes.c_uint64, ctypes.c_uint64, ctypes.c_float),
        *(integer, pointer, pointer, integer, pointer, pointer),
    ]
    found.ouroboros_guess.restype = None
    found.ouroboros_choose.argtypes = [
        *(integer, pointer, ctypes.c_int64, integer, integer, ctypes.c_float, pointer, integer),
        *(pointer, pointer, pointer, integer, pointer, pointer),
    ]
    found.ouroboros_keep.argtypes = [pointer, *[ctypes.c_int64] * 4, pointer, integer]
    found.ouroboros_keep.restype = None
    return found
