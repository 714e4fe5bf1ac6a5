"""How the C++ kernels are compiled: for this machine when they are first needed, or ahead, for a wheel.

It imports the standard library alone, and nothing of this package: the build of a wheel runs it too (hatch_build.py).
What is compiled ahead may use the instructions of its set and no others. It is not linked with OpenMP, whose functions
it takes from the library that PyTorch has loaded: a copy of its own would bring threads that fight PyTorch's for the
cores.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

__all__ = ["NEEDED", "UnavailableError", "built_file", "compile_ahead", "compile_kernels", "find_compiler", "variants"]

SOURCES = sorted(path for path in Path(__file__).parent.rglob("*") if path.suffix in (".h", ".cpp"))
NEEDED = {  # the sets of instructions, the faster first, and what each asks of a processor
    "avx512": ("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_bf16", "avx512_vnni", "avx2", "fma", "f16c"),
    "avx2": ("avx2", "fma", "f16c"),
}
MACHINES = {("linux", "x86_64"): ("avx512", "avx2")}  # which of them there are, by sys.platform and machine
OPTIONS = ("-O3", "-std=c++17", "-fopenmp", "-fPIC", "-shared")
NATIVE = {"avx512": ("-march=native",), "avx2": ("-march=native", "-mno-avx512f")}  # without what it may have besides
RENAMED = {"avx512_bf16": "avx512bf16", "avx512_vnni": "avx512vnni"}  # compilers' names of what Linux calls otherwise
ALONE = ("-shared", "-Wl,--as-needed", "-s")  # of the linker, for what is built ahead
SECONDS = 300  # for a compiler that takes a few


class UnavailableError(Exception):
    """Why there are no kernels here. It never leaves this package."""


def variants(system: str, machine: str) -> tuple[str, ...]:
    """The sets of instructions that there are kernels for on such machines, the faster first."""
    return MACHINES.get((system, machine), ())


def built_file(name: str) -> str:
    """What a library compiled ahead is called beside this file: other sources, another name."""
    digest = hashlib.sha256(b"\0".join(source.read_bytes() for source in SOURCES)).hexdigest()
    return f"built/{name}-{digest[:12]}.so"


def find_compiler() -> str:
    """The C++ compiler that CXX names, else the usual ones."""
    named = os.environ.get("CXX")
    for name in [named] if named else ["g++", "c++"]:
        if found := shutil.which(name):
            return found
    raise UnavailableError(f"no C++ compiler ({named or 'g++'} not found)")


def compile_kernels(compiler: str, file: Path, options: Sequence[str], openmp: Sequence[str] = ()) -> None:
    """Compiles to a name of its own and then moves it to ``file``. ``openmp``: the library to link, where one is."""
    number, temporary = tempfile.mkstemp(dir=file.parent, suffix=".so")
    os.close(number)
    try:
        _run([compiler, str(_source()), "-o", temporary, "-Wl,--as-needed", *openmp, *options])
        os.replace(temporary, file)
    finally:
        Path(temporary).unlink(missing_ok=True)


def compile_ahead(compiler: str, file: Path, name: str) -> None:
    """Compiles a set's library for any machine that has this set."""
    with tempfile.TemporaryDirectory() as folder:
        compiled = str(Path(folder) / "decoder.o")  # in two steps: -fopenmp would link the compiler's own library
        _run([compiler, str(_source()), "-c", "-o", compiled, *OPTIONS, *_flags(name)])
        _run([compiler, compiled, "-o", str(file), *ALONE])


def _source() -> Path:
    return next(path for path in SOURCES if path.suffix == ".cpp")


def _flags(name: str) -> list[str]:
    """Of the compiler, for no instructions but this set's."""
    return [f"-m{RENAMED.get(flag, flag)}" for flag in NEEDED[name]] + ["-mtune=generic"]


def _run(command: Sequence[str]) -> None:
    # In a group of its own: what the compiler has started ends with it.
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace", start_new_session=True
    ) as compiler:
        try:
            said = compiler.communicate(timeout=SECONDS)[1]
        except BaseException:
            os.killpg(compiler.pid, signal.SIGKILL)
            raise
    if compiler.returncode:
        errors = [line for line in said.splitlines() if "error" in line] or said.splitlines() or ["?"]
        raise UnavailableError(f"{Path(command[0]).name} failed: {errors[0].strip()[:120]}")
