"""The C++ kernels: compiled when they are first needed, kept in the user's cache directory, loaded with ctypes.

The file's name in the cache is a hash of everything that the machine code depends on, and a finished file is moved
there in one step, so that any number of processes may start at once. Nothing here ever raises: without a compiler, a
known processor or a place to write, ``library`` says why, and the operators of PyTorch and NumPy do the work. CXX
names the compiler, as it does for other programs.

One source is compiled for the better of two sets of instructions that the processor has. They add up in different
orders and so round differently; on each for itself a row's bits depend on nothing else in its forward.
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
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch

from ouroboros.directories import cache_directory

__all__ = ["UnavailableError", "compile_kernels", "instructions", "library"]

SOURCES = sorted(Path(__file__).parent.rglob("*.[ch]*"))
NEEDED = {  # the sets of instructions, the faster first, and what each asks of a processor
    "avx512": ("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_bf16", "avx512_vnni"),
    "avx2": ("avx2", "fma", "f16c"),
}
OPTIONS = ("-O3", "-std=c++17", "-march=native", "-fopenmp", "-fPIC", "-shared")
WITHOUT = {"avx512": (), "avx2": ("-mno-avx512f",)}  # what the processor may have besides
SECONDS = 300  # for a compiler that takes three


class UnavailableError(Exception):
    """Why there are no kernels here. It never leaves this package."""


@cache
def library(name: str | None = None) -> ctypes.CDLL | str:
    """The loaded library, or in a few words why there is none. ``name``: of NEEDED, in place of the best."""
    try:
        processor = _processor()
        return _declared(_load(processor, _chosen(processor.split(), name)))
    except UnavailableError as error:
        return str(error)
    except (OSError, subprocess.SubprocessError, AttributeError) as error:
        return f"{type(error).__name__}: {error}"


def instructions() -> str | None:
    """The set of instructions that ``library`` is compiled for, of NEEDED; None where there is no library."""
    found = library()
    return None if isinstance(found, str) else found.ouroboros_instructions().decode()


def _processor() -> str:
    """The processor's abilities, as the kernel names them."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise UnavailableError(f"no kernels for {sys.platform} on {platform.machine()}")
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    flags = next((line.split(":", 1)[1].split() for line in lines if line.startswith("flags")), [])
    return " ".join(sorted(flags))


def _chosen(flags: Sequence[str], name: str | None) -> str:
    """The best set that the processor has, or this one if it has it."""
    missing = ""
    for each in [name] if name else NEEDED:
        lacks = [flag for flag in NEEDED[each] if flag not in flags]
        if not lacks:
            return each
        missing = lacks[0]
    raise UnavailableError(f"the processor lacks {missing}")


def _load(processor: str, name: str) -> ctypes.CDLL:
    compiler = _compiler()
    parts = [source.read_bytes() for source in SOURCES]
    parts += [str(x).encode() for x in (compiler, OPTIONS, WITHOUT[name], torch.__version__, processor)]
    key = hashlib.sha256(b"\0".join(parts)).hexdigest()[:24]
    file = _cache_directory() / f"decoder-{key}.so"
    if file.is_file():
        try:
            return ctypes.CDLL(str(file))
        except OSError:  # damaged: made anew below
            file.unlink(missing_ok=True)
    compile_kernels(compiler, file, WITHOUT[name])
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


def compile_kernels(compiler: str, file: Path, more: Sequence[str] = ()) -> None:
    """Compiles, with ``more`` options, to a name of its own and then moves it to ``file``."""
    source = next(path for path in SOURCES if path.suffix == ".cpp")
    # The threads are those of PyTorch: where its wheel brings an OpenMP library under another name, link that one.
    root = Path(torch.__file__).parent
    openmp = [
        str(path) for folder in (root / "lib", root.parent / "torch.libs") for path in folder.glob("libgomp*.so*")
    ]
    number, temporary = tempfile.mkstemp(dir=file.parent, suffix=".so")
    os.close(number)
    try:
        command = [compiler, str(source), "-o", temporary, "-Wl,--as-needed", *openmp[:1], *OPTIONS, *more]
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines() or ["?"]
            raise UnavailableError(f"{Path(compiler).name} failed: {errors[0].strip()[:120]}")
        os.replace(temporary, file)
    finally:
        Path(temporary).unlink(missing_ok=True)


def _declared(found: ctypes.CDLL) -> ctypes.CDLL:
    integer, pointer = ctypes.c_int, ctypes.c_void_p
    found.ouroboros_instructions.restype = ctypes.c_char_p
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
    found.ouroboros_forward.argtypes = [pointer, pointer, integer, *[pointer] * 3, integer, pointer, integer]
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
