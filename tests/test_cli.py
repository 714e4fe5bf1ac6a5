"""The command line against a fake decoder, in this process and in others; at the end against the embedded pair."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import ouroboros
from ouroboros import _render, cli
from ouroboros._tables import of_demo
from ouroboros._version import __version__
from ouroboros.bench import demo
from ouroboros.commands.demo import Clock
from ouroboros.commands.options import Place
from ouroboros.config import METHODS, OuroborosOptions, SamplingParams, options_from_strings
from ouroboros.errors import LoadError
from ouroboros.models.llama import ENGINES
from ouroboros.stats import Stats, StatsRecorder
from ouroboros.tree import Origin, TokenTree

ERROR = "ouroboros: error: "
GENERATE_OPTIONS = [
    f"--{name}"
    for name in (
        "prompt-file",
        "target",
        "draft",
        "method",
        "max-new-tokens",
        "temperature",
        "top-k",
        "top-p",
        "min-p",
        "repetition-penalty",
        "seed",
        "stop",
        "stop-token-id",
        "ignore-eos",
        "draft-tokens",
        "set",
        "presence-penalty",
        "frequency-penalty",
        "logit-bias",
        "json-schema",
        "regex",
        "lark",
        "guidance-scale",
        "negative-prompt",
        "logprobs",
        "dtype",
        "device",
        "threads",
        "backend",
        "engine",
        "revision",
        "pool",
        "pool-read-only",
        "json",
    )
]
PIECES = (("def ", "draft"), ("f", "phrase"), ("():\n", "bonus"), ("\tpass é🙂", "draft"))

# ----------------------------------------------------------------------------------------------------------- fakes


def stats_of(tokens: int, method: str = "ouroboros", trees: tuple[bool, bool] = (True, True)) -> Stats:
    recorder = StatsRecorder(method, "native", "float32", "cpu", 7, 3, *trees)
    tree = TokenTree(0)
    tree.extend(0, range(1, tokens + 1), Origin.DRAFT)
    recorder.step(tree, (Origin.DRAFT,) * tokens, 0.25, draft_forwards=3, draft_seconds=0.1)
    recorder.step(TokenTree(0), (), 0.25, draft_forwards=0, draft_seconds=0.0)
    return recorder.freeze()


@dataclass(frozen=True)
class FakeChunk:
    pieces: tuple[tuple[str, str], ...]

    @property
    def text(self) -> str:
        return "".join(text for text, _ in self.pieces)


@dataclass(frozen=True)
class FakeResult:
    text: str
    token_ids: list[int]
    prompt_token_ids: list[int]
    finish_reason: str
    stats: Stats
    logprobs: None = None


@dataclass
class FakeStream:
    chunks: Iterator[FakeChunk]
    seen: list[FakeChunk] = field(default_factory=list)
    closed: bool = False
    method: str = "ouroboros"
    trees: tuple[bool, bool] = (True, True)

    def __enter__(self) -> FakeStream:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.closed = True

    def __iter__(self) -> Iterator[FakeChunk]:
        for chunk in self.chunks:
            self.seen.append(chunk)
            yield chunk

    @property
    def result(self) -> FakeResult:
        ids = list(range(len(self.seen)))
        stats = stats_of(len(ids), self.method, self.trees)
        return FakeResult("".join(chunk.text for chunk in self.seen), ids, [1, 2, 3], "length", stats)


@dataclass
class FakeDecoder:
    """What the command line knows of a decoder; the pieces are given one to a chunk."""

    pieces: Callable[[], Iterator[tuple[str, str]]] = lambda: iter(PIECES)
    requests: list[tuple[str, SamplingParams]] = field(default_factory=list)
    closed: int = 0
    method: str = "ouroboros"
    trees: tuple[bool, bool] = (True, True)  # whether the target, the draft model take them

    def stream(self, prompt: str, params: SamplingParams) -> FakeStream:
        self.requests.append((prompt, params))
        chunks = (FakeChunk((piece,)) for piece in self.pieces())
        return FakeStream(chunks, method=self.method, trees=self.trees)

    def generate(self, prompt: str, params: SamplingParams) -> FakeResult:
        stream = self.stream(prompt, params)
        list(stream)
        return stream.result

    def close(self) -> None:
        self.closed += 1


@dataclass
class FakeLoad:
    decoder: FakeDecoder = field(default_factory=FakeDecoder)
    calls: list[dict[str, Any]] = field(default_factory=list)
    error: BaseException | None = None

    def __call__(
        self,
        target: str | None,
        draft: str | None,
        method: str,
        options: object,
        place: Place,
        pool: str | bool | None,
        pool_read_only: bool,
    ) -> FakeDecoder:
        self.calls.append({name: value for name, value in locals().items() if name != "self"})
        if self.error is not None:
            raise self.error
        return self.decoder


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> FakeLoad:
    fake = FakeLoad()
    monkeypatch.setattr(cli, "_load", fake)
    return fake


def endless() -> Iterator[tuple[str, str]]:
    while True:
        time.sleep(0.02)
        yield "word ", "draft"


def hostile() -> Iterator[tuple[str, str]]:
    yield "a\x1b[31mred\x9b2J\x07\r\n", "draft"
    yield "[bold]b[/bold] :smile:\t\x7f\x00\x08", "bonus"


def slow_load(*args: object) -> FakeDecoder:
    try:
        sys.stderr.write("loading\n")
        sys.stderr.flush()
        time.sleep(30)
    except KeyboardInterrupt:
        raise ImportError("a library's own error, made of the interrupt") from None
    raise AssertionError


def run_fake(pieces: str, args: Sequence[str] | None) -> int:
    """For subprocesses: the command line with a fake decoder, in a process of its own."""
    fake: Any = slow_load if pieces == "slow_load" else FakeLoad(FakeDecoder(globals()[pieces]))
    cli._load = fake
    demo.beside = lambda decoder, method: FakeDecoder()  # type: ignore[assignment, return-value]
    return cli.main(args)


def normal() -> Iterator[tuple[str, str]]:
    yield from PIECES


def owned_command(pieces: str, *args: str) -> list[str]:
    """As from a shell: the process is the command line's own."""
    code = "import sys, test_cli; pieces = sys.argv.pop(1); sys.exit(test_cli.run_fake(pieces, None))"
    return [sys.executable, "-c", code, pieces, *args]


def fake_command(pieces: str, *args: str) -> list[str]:
    code = "import sys, test_cli; sys.exit(test_cli.run_fake(sys.argv[1], sys.argv[2:]))"
    return [sys.executable, "-c", code, pieces, *args]


def real_command(*args: str) -> list[str]:
    return [sys.executable, "-m", "ouroboros.cli", *args]


def environment(**more: str) -> dict[str, str]:
    path = [str(Path(__file__).parent), str(Path(ouroboros.__file__).parent.parent)]
    kept = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR", "TERM")}
    # one thread, because torch's threads wait for each other actively, and tests run side by side
    return {**kept, "PYTHONPATH": os.pathsep.join(path), "TERM": "xterm-256color", "OMP_NUM_THREADS": "1", **more}


def run(command: list[str], **more: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(command, input=b"", capture_output=True, env=environment(**more), timeout=100, check=False)


def one_error(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    """Run with bad input: exit status 2, nothing on standard output, one line on standard error; the line."""
    assert cli.main(args) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(ERROR)
    assert err.endswith("\n")
    assert err.count("\n") == 1
    return err.removeprefix(ERROR).strip()


# --------------------------------------------------------------------------------------------------------- options


def test_version_is_quick_and_imports_no_model_library() -> None:
    code = (
        "import sys, ouroboros.cli as c; status = c.main(['--version']);"
        "sys.exit(status or ('torch' in sys.modules) or ('transformers' in sys.modules))"
    )
    done = run([sys.executable, "-c", code])
    assert (done.returncode, done.stdout, done.stderr) == (0, f"ouroboros {__version__}\n".encode(), b"")


def test_help_names_every_option_of_the_public_face(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["generate", "--help"]) == 0
    text = capsys.readouterr().out
    assert [option for option in GENERATE_OPTIONS if option not in text] == []
    assert cli.main(["--help"]) == 0
    assert "demo" in capsys.readouterr().out


def test_the_bare_command_is_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0
    bare = capsys.readouterr()
    assert cli.main(["--help"]) == 0
    assert bare == capsys.readouterr()
    assert "demo" in bare.out


def test_shells_complete_commands_and_options() -> None:
    for words, wanted in (("ouroboros gen", b"plain,generate"), ("ouroboros demo --tar", b"plain,--target")):
        position = str(len(words.split()) - 1)
        done = run(real_command(), _OUROBOROS_COMPLETE="bash_complete", COMP_WORDS=words, COMP_CWORD=position)
        assert (done.returncode, done.stdout.split(), done.stderr) == (0, [wanted], b"")
    assert b"complete" in run(real_command(), _OUROBOROS_COMPLETE="bash_source").stdout


def test_defaults_are_those_of_the_dataclasses(load: FakeLoad, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["generate", "hello"]) == 0
    assert load.decoder.requests == [("hello", SamplingParams())]
    assert load.calls == [
        {
            "target": None,
            "draft": None,
            "method": "ouroboros",
            "options": {},
            "place": Place(),
            "pool": None,
            "pool_read_only": False,
        }
    ]
    assert load.decoder.closed == 1
    assert capsys.readouterr() == ("def f():\n\tpass é🙂", "")


def test_every_option_arrives_converted(load: FakeLoad) -> None:
    args = (
        "generate hello --target T --draft D --method prompt_lookup --max-new-tokens 5 --temperature 0.5 --top-k 3 "
        "--top-p 0.9 --min-p 0.1 --repetition-penalty 1.2 --seed 11 --stop a --stop b --draft-tokens 4 "
        "--stop-token-id 7 --stop-token-id 9 "
        "--set max_ngram=5 --set min_ngram=2 --dtype bfloat16 --device cpu --threads 2 "
        "--backend native --engine plain --revision v1 --draft-dtype int8 --pool P "
        "--pool-read-only --presence-penalty 0.1 --frequency-penalty -0.2 "
        "--logit-bias 5=-1.5 --logit-bias 3=100 --regex [0-9]+ --guidance-scale 2 --negative-prompt no"
    )
    assert cli.main(args.split()) == 0
    expected = SamplingParams(
        max_new_tokens=5,
        temperature=0.5,
        top_k=3,
        top_p=0.9,
        min_p=0.1,
        repetition_penalty=1.2,
        seed=11,
        stop=("a", "b"),
        stop_token_ids=(7, 9),
        presence_penalty=0.1,
        frequency_penalty=-0.2,
        logit_bias=((3, 100.0), (5, -1.5)),
        grammar={"regex": "[0-9]+"},
        guidance_scale=2.0,
        negative_prompt="no",
    )
    assert load.decoder.requests == [("hello", expected)]
    assert load.calls == [
        {
            "target": "T",
            "draft": "D",
            "method": "prompt_lookup",
            "options": {"draft_tokens": "4", "max_ngram": "5", "min_ngram": "2"},
            "place": Place("bfloat16", "cpu", 2, "native", "plain", "v1", "int8"),
            "pool": "P",
            "pool_read_only": True,
        }
    ]


@pytest.mark.parametrize(("text", "value"), [("false", False), ("off", False), ("0", False), ("True", True)])
def test_set_converts_switches_and_numbers(load: FakeLoad, text: str, value: bool) -> None:
    assert cli.main(["generate", "x", "--set", f"harvest={text}", "--set", "min_chance=0.25", "--set", "window=3"]) == 0
    expected = OuroborosOptions(harvest=value, min_chance=0.25, window=3)
    assert options_from_strings("ouroboros", load.calls[0]["options"]) == expected


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["nonsense"], ["'nonsense'", "generate", "demo"]),
        (["generat"], ["'generat'", "did you mean 'generate'?"]),
        (["generate", "a", "--temprature", "1"], ["--temprature", "--temperature"]),
        (["generate", ""], ["prompt is empty"]),
        (["--nonsense"], ["--nonsense"]),
        (["generate"], ["PROMPT", "--prompt-file", "-"]),
        (["generate", "a", "b"], ["b"]),
        (["generate", "a", "--prompt-file", "f"], ["'a'", "'f'"]),
        (["generate", "-", "--prompt-file", "f"], ["'-'", "'f'"]),
        (["generate", "--prompt-file", "/nowhere/at all"], ["'/nowhere/at all'", "No such file"]),
        (["generate", "--prompt-file", "/"], ["'/'", "directory"]),
        (["generate", "a", "--nonsense"], ["--nonsense"]),
        (["generate", "a", "--top-k"], ["--top-k"]),
        (["generate", "a", "--top-k", "many"], ["--top-k", "'many'", "integer"]),
        (["generate", "a", "--top-k", "-1"], ["top_k", "-1", "at least 0"]),
        (["generate", "a", "--top-p", "0"], ["top_p", "above 0"]),
        (["generate", "a", "--min-p", "1.5"], ["min_p", "1.5", "from 0 to 1"]),
        (["generate", "a", "--temperature", "nan"], ["temperature", "nan", "at least 0"]),
        (["generate", "a", "--temperature", "hot"], ["--temperature", "'hot'"]),
        (["generate", "a", "--max-new-tokens", "0"], ["max_new_tokens", "0", "at least 1"]),
        (["generate", "a", "--repetition-penalty", "0"], ["repetition_penalty", "above 0"]),
        (["generate", "a", "--seed", "-1"], ["seed", "-1"]),
        (["generate", "a", "--stop", ""], ["stop", "''", "at least one character"]),
        (["generate", "a", "--method", "magic"], ["'magic'", *METHODS]),
        (["generate", "a", "--set", "window"], ["--set", "NAME=VALUE", "'window'"]),
        (["generate", "a", "--set", "=3"], ["--set", "NAME=VALUE", "'=3'"]),
        (["generate", "a", "--set", "speed=3"], ["'speed'", "window"]),
        (["generate", "a", "--set", "window=wide"], ["window", "'wide'", "whole number"]),
        (["generate", "a", "--set", "window=999"], ["window", "999", "64"]),
        (["generate", "a", "--set", "harvest=maybe"], ["harvest", "'maybe'", "true or false"]),
        (["generate", "a", "--set", "window=1", "--set", "window=2"], ["'window'", "once"]),
        (["generate", "a", "--draft-tokens", "2", "--set", "draft_tokens=3"], ["'draft_tokens'", "once"]),
        (["generate", "a", "--draft-tokens", "0"], ["draft_tokens", "0", "1 to 128"]),
        (
            ["generate", "a", "--draft-tokens", "3", "--method", "lookahead"],
            ["'draft_tokens'", "'lookahead'", "window"],
        ),
        (["generate", "a", "--draft-tokens", "3", "--method", "autoregressive"], ["'draft_tokens'", "none"]),
        (["generate", "a", "--threads", "0"], ["--threads", "0", "1 to"]),
        (["generate", "a", "--threads", "1000000"], ["--threads", "1000000", "1 to"]),
        (["generate", "a", "--logit-bias", "x=1"], ["--logit-bias", "TOKEN_ID=NUMBER", "'x=1'"]),
        (["generate", "a", "--regex", "a", "--lark", "b"], ["one grammar", "--regex and --lark"]),
        (["generate", "a", "--json-schema", "@/nowhere.json"], ["cannot read grammar file '/nowhere.json'"]),
        (["generate", "a", "--logprobs", "2"], ["--logprobs needs --json"]),
        (["generate", "a", "--negative-prompt", "b"], ["negative_prompt", "guidance_scale"]),
        (["generate", "a", "--backend", "none"], ["--backend", "none"]),
        (["generate", "a", "--engine", "fast"], ["--engine", "fast", *ENGINES]),
        (["chat", "--logprobs", "2"], ["--logprobs is for generate"]),
        (["chat", "--chat-template", "/nowhere"], ["cannot read chat template '/nowhere'"]),
        (["generate", "a", "--pool-read-only"], ["--pool-read-only", "--pool FILE"]),
        (["generate", "a", "--set", "x\x1b[31m\n=1"], ["\\x1b[31m"]),
        (["demo", "--temperature", "-1"], ["temperature", "-1.0"]),
        (["demo", "extra"], ["extra"]),
        (["demo", "--draft", "D"], ["'D'", "target"]),
        (["demo", "--backend", "transformers"], ["--backend", "--target"]),
    ],
)
def test_bad_input_is_one_line(
    load: FakeLoad, capsys: pytest.CaptureFixture[str], args: list[str], words: list[str]
) -> None:
    line = one_error(capsys, *args)
    assert [word for word in words if word not in line] == []
    assert "\x1b" not in line
    assert load.calls == [], "bad input must be found before a model is loaded"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (LoadError("target must be\na directory, not 'x'"), "target must be a directory, not 'x'"),
        (MemoryError(), "not enough memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory:\n you tried"), "not enough memory"),
        (AssertionError("Torch not compiled with CUDA enabled"), "Torch not compiled with CUDA enabled"),
        (RuntimeError("Found no NVIDIA driver on your system."), "Found no NVIDIA driver"),
        (PermissionError(13, "Permission denied", "pool.bin"), "Permission denied: 'pool.bin'"),
    ],
)
def test_failures_of_loading_are_one_line(
    load: FakeLoad, capsys: pytest.CaptureFixture[str], error: BaseException, words: str
) -> None:
    load.error = error
    assert words in one_error(capsys, "generate", "hello")


def test_a_defect_shows_its_traceback(load: FakeLoad) -> None:
    load.error = ZeroDivisionError("a defect")
    with pytest.raises(ZeroDivisionError):
        cli.main(["generate", "hello"])


# ---------------------------------------------------------------------------------------------------------- prompt


@pytest.mark.parametrize("data", [b"a\r\nb\rc\n\n", "\ufeffé🙂\u2028".encode(), b" \t\x00\x1b\n"])
def test_a_prompt_comes_byte_for_byte(
    load: FakeLoad, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes
) -> None:
    (tmp_path / "prompt").write_bytes(data)
    assert cli.main(["generate", "--prompt-file", str(tmp_path / "prompt")]) == 0
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    assert cli.main(["generate", "-"]) == 0
    assert [prompt.encode() for prompt, _ in load.decoder.requests] == [data, data]


def test_a_prompt_file_that_is_not_utf8_is_one_line(
    load: FakeLoad, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "prompt").write_bytes(b"ab\xffc")
    line = one_error(capsys, "generate", "--prompt-file", str(tmp_path / "prompt"))
    assert "byte 2 (0xff)" in line
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xe2\x82")))
    assert "standard input must be UTF-8" in one_error(capsys, "generate", "-")


def test_a_prompt_that_looks_like_an_option_comes_behind_two_dashes(load: FakeLoad) -> None:
    assert cli.main(["generate", "--", "--json"]) == 0
    assert load.decoder.requests[0][0] == "--json"


# ---------------------------------------------------------------------------------------------------------- output


def test_json_is_one_object(load: FakeLoad, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["generate", "hello", "--json"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.endswith("}\n")
    assert out.count("\n") == 1
    found = json.loads(out)
    assert list(found) == ["text", "token_ids", "prompt_token_ids", "finish_reason", "stats"]
    assert found["text"] == "def f():\n\tpass é🙂"
    assert found["token_ids"] == [0, 1, 2, 3]
    assert found["prompt_token_ids"] == [1, 2, 3]
    assert found["stats"] == stats_of(4).to_dict()


@pytest.mark.parametrize(
    ("method", "trees", "words"),
    [
        ("ouroboros", (False, True), ["the target model takes chains only"]),
        ("ouroboros", (True, False), ["the draft model takes chains only"]),
        ("ouroboros", (False, False), ["the target model takes chains only", "the draft model takes chains only"]),
        ("lookahead", (False, True), ["the target model takes chains only"]),
        ("speculative", (False, False), []),  # it sends chains in any case
    ],
)
@pytest.mark.parametrize("as_json", [False, True])
def test_one_line_says_that_a_model_takes_chains_only(
    load: FakeLoad,
    capsys: pytest.CaptureFixture[str],
    method: str,
    trees: tuple[bool, bool],
    words: list[str],
    as_json: bool,
) -> None:
    load.decoder.method, load.decoder.trees = method, trees
    assert cli.main(["generate", "hello", "--method", method, *["--json"] * as_json]) == 0
    out, err = capsys.readouterr()
    assert err.count("\n") == bool(words)
    assert err.count("chains only") == len(words)
    assert all(word in err for word in words)
    if as_json:
        assert (json.loads(out)["stats"]["trees"], json.loads(out)["stats"]["draft_trees"]) == trees


def test_json_holds_no_control_character(load: FakeLoad, capsys: pytest.CaptureFixture[str]) -> None:
    load.decoder.pieces = hostile
    assert cli.main(["generate", "hello", "--json"]) == 0
    out = capsys.readouterr().out
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", out)
    assert json.loads(out)["text"] == "".join(text for text, _ in hostile())


@pytest.mark.parametrize(
    "more", [{}, {"LC_ALL": "C", "PYTHONUTF8": "0"}, {"PYTHONIOENCODING": "latin-1"}, {"FORCE_COLOR": "1"}]
)
def test_a_pipe_gets_the_text_and_nothing_else(more: dict[str, str]) -> None:
    done = run(fake_command("normal", "generate", "hello"), **more)
    assert (done.returncode, done.stdout, done.stderr) == (0, "def f():\n\tpass é🙂".encode(), b"")
    done = run(fake_command("hostile", "generate", "hello"), **more)
    assert done.stdout.decode() == "".join(text for text, _ in hostile()), "a pipe gets the text as it is"


def in_terminal(command: list[str], stderr_too: bool = True, **more: str) -> tuple[int, str, str]:
    """Run with standard output (and error) in a pseudo-terminal; status, what the terminal got, what a pipe got."""
    ours, theirs = pty.openpty()
    error: Any = theirs if stderr_too else subprocess.PIPE
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=theirs, stderr=error, env=environment(**more)
    ) as child:
        os.close(theirs)
        got = b""
        with contextlib.suppress(OSError):  # the terminal's way to say that nobody writes any more
            while select.select([ours], [], [], 60)[0]:
                data = os.read(ours, 4096)
                if not data:
                    break
                got += data
        piped = b"" if child.stderr is None else child.stderr.read()
        status = child.wait(60)
    os.close(ours)
    return status, got.decode().replace("\r\n", "\n"), piped.decode()


ANSI = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


def test_a_terminal_gets_colours_by_source_a_legend_and_figures() -> None:
    status, got, _ = in_terminal(fake_command("normal", "generate", "hello"))
    assert status == 0
    for number, text in [(32, "def "), (166, "f"), (133, "():"), (32, "\tpass é🙂")]:
        assert f"\x1b[38;5;{number}m{text}" in got
    plain = ANSI.sub("", got)
    legend, rest = plain.split("def f():\n\tpass é🙂\n")
    assert all(source in legend for source in ("draft", "phrase", "bonus"))
    assert "4 new tokens, 2.00 tokens per target forward, 0.75 draft forwards per token" in rest
    assert "100% of 4 drafted tokens accepted, 8.0 tokens/s" in rest


@pytest.mark.parametrize("more", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_a_terminal_without_colours_gets_plain_text(more: dict[str, str]) -> None:
    status, got, err = in_terminal(fake_command("normal", "generate", "hello"), stderr_too=False, **more)
    assert (status, got) == (0, "def f():\n\tpass é🙂\n")
    assert err.startswith("4 new tokens")
    assert err.count("\n") == 1


def test_a_terminal_never_obeys_the_model() -> None:
    status, got, _ = in_terminal(fake_command("hostile", "generate", "hello"), stderr_too=False)
    assert status == 0
    assert ANSI.sub("", got) == "a\\x1b[31mred\\x9b2J\\x07\n[bold]b[/bold] :smile:\t\\x7f\\x00\\x08\n"
    assert set(re.findall(r"\x1b\[[0-9;]*m", got)) <= {"\x1b[0m", "\x1b[38;5;32m", "\x1b[38;5;133m"}
    status, got, _ = in_terminal(fake_command("hostile", "generate", "hello", "--json"), stderr_too=False)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", got)


def test_showable_keeps_newline_and_tab_alone() -> None:
    every = "".join(map(chr, range(0xA1)))
    shown = _render.showable(every)
    assert [char for char in shown if ord(char) < 0x20 or 0x7F <= ord(char) < 0xA0] == ["\t", "\n"]
    assert "\\x1b" in shown
    assert "\\x9b" in shown
    assert _render.showable("é🙂\u200d日") == "é🙂\u200d日"


@pytest.mark.parametrize("number", [32, 166, 133])
def test_the_colours_can_be_read_on_black_and_on_white(number: int) -> None:
    level = [0, 95, 135, 175, 215, 255]
    n = number - 16
    channels = [level[n // 36] / 255, level[n // 6 % 6] / 255, level[n % 6] / 255]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    assert (luminance + 0.05) / 0.05 > 3.7
    assert 1.05 / (luminance + 0.05) > 3.7


# ----------------------------------------------------------------------------------------- closed pipes and Ctrl-C


@pytest.mark.parametrize("pieces", ["normal", "endless"])
def test_an_output_that_closes_early_is_one_line(pieces: str) -> None:
    with subprocess.Popen(
        fake_command(pieces, "generate", "hello"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    ) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        if pieces == "endless":
            child.stdout.read(1)
        child.stdout.close()
        err = child.stderr.read().decode()
        assert child.wait(60) == 2
    assert err == f"{ERROR}the output was closed before its end\n"


@pytest.mark.parametrize(
    "args", [["generate", "hello"], ["generate", "hello", "--json"], ["--help"], ["demo", "--target", "T"]]
)
def test_an_output_that_is_closed_or_full_is_one_line(args: list[str]) -> None:
    command = fake_command("normal", *args)
    for redirection, words in [("> /dev/full", "No space left on device"), (">&-", "standard output is closed")]:
        if args == ["--help"] and redirection == ">&-":
            continue  # click prints nothing where nothing can be printed
        done = run(["sh", "-c", f'"$@" {redirection}', "sh", *command])
        assert done.returncode == 2
        assert done.stderr.decode() == f"{ERROR}{words}\n"


def test_a_closed_standard_error_does_no_harm() -> None:
    done = run(["sh", "-c", '"$@" 2>&-', "sh", *fake_command("normal", "generate", "hello")])
    assert (done.returncode, done.stdout.decode()) == (0, "def f():\n\tpass é🙂")
    done = run(["sh", "-c", '"$@" 2>&-', "sh", *fake_command("normal", "generate")])
    assert (done.returncode, done.stdout) == (2, b"")


def interrupted(*command: str, wait_for: str) -> tuple[int, str, str]:
    """SIGINT once ``wait_for`` ("out" or "err") has its first byte; status, all of standard output and error."""
    with subprocess.Popen(
        list(command),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,  # or the first read takes more than its byte out of communicate's sight
        env=environment(),
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # else ignored in a background job
    ) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        first = (child.stdout if wait_for == "out" else child.stderr).read(1).decode()
        child.send_signal(signal.SIGINT)
        out, err = (data.decode() for data in child.communicate(timeout=60))
        return child.returncode, first + out if wait_for == "out" else out, first + err if wait_for == "err" else err


def test_an_interrupt_keeps_what_was_written() -> None:
    status, out, err = interrupted(*fake_command("endless", "generate", "hello"), wait_for="out")
    assert (status, err) == (130, "")
    assert out == "word " * (len(out) // 5)


def test_an_interrupt_while_loading_ends_quietly() -> None:
    status, out, err = interrupted(*fake_command("slow_load", "generate", "hello"), wait_for="err")
    assert (status, out, err) == (130, "", "loading\n")


def test_an_interrupt_with_json_leaves_one_object_of_what_there_is(
    load: FakeLoad, capsys: pytest.CaptureFixture[str]
) -> None:
    def pieces() -> Iterator[tuple[str, str]]:
        yield "a", "draft"
        yield "b", "bonus"
        raise KeyboardInterrupt

    load.decoder.pieces = pieces
    assert cli.main(["generate", "hello", "--json"]) == 130
    assert json.loads(capsys.readouterr().out)["text"] == "ab"
    assert load.decoder.closed == 1


def test_an_interrupt_before_the_first_token_writes_no_text(load: FakeLoad, capsys: pytest.CaptureFixture[str]) -> None:
    def pieces() -> Iterator[tuple[str, str]]:
        raise KeyboardInterrupt
        yield

    load.decoder.pieces = pieces
    assert cli.main(["generate", "hello"]) == 130
    assert capsys.readouterr() == ("", "")
    assert cli.main(["generate", "hello", "--json"]) == 130
    assert json.loads(capsys.readouterr().out)["token_ids"] == []
    assert load.decoder.closed == 2


def test_an_interrupt_that_a_library_swallows_still_ends_the_run(load: FakeLoad) -> None:
    def pieces() -> Iterator[tuple[str, str]]:
        for n in range(10):
            if n == 2:
                with contextlib.suppress(KeyboardInterrupt):
                    signal.raise_signal(signal.SIGINT)
            yield str(n), "draft"

    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        load.decoder.pieces = pieces
        assert cli.main(["generate", "hello"]) == 130
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, previous)


# --------------------------------------------------------------------------------------------------------- signals


def slow_end() -> Iterator[tuple[str, str]]:
    try:
        yield from endless()
    finally:
        sys.stderr.write("ending\n")
        sys.stderr.flush()
        time.sleep(0.3)


def signals(*numbers: int, pieces: str = "endless", pause: float = 0.0) -> tuple[int, str, str]:
    """These once the first piece is there; status, standard output and error."""
    with subprocess.Popen(
        owned_command(pieces, "generate", "hello"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
        env=environment(),
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as child:
        assert child.stdout is not None
        first = child.stdout.read(1).decode()
        for number in numbers:
            child.send_signal(number)
            time.sleep(pause)
        out, err = (data.decode() for data in child.communicate(timeout=60))
        return child.returncode, first + out, err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_end_keeps_what_was_written(number: signal.Signals) -> None:
    status, out, err = signals(number)
    assert (status, err) == (128 + number, "")
    assert out == "word " * (len(out) // 5)


@pytest.mark.parametrize("pause", [0.0, 0.01, 0.05, 0.1, 0.2, 0.4])
def test_more_interrupts_give_no_traceback(pause: float) -> None:
    status, _, err = signals(*[signal.SIGINT] * 4, pieces="slow_end", pause=pause)
    assert status == 130
    assert set(err.splitlines()) <= {"ending"}


def test_a_late_interrupt_gives_no_traceback() -> None:
    """After everything is done, while the interpreter is taken down."""
    code = (
        "import atexit, os, signal, sys, test_cli\n"
        "atexit.register(lambda: (os.kill(os.getpid(), signal.SIGINT), sum(range(10**6))))\n"
        "sys.argv[1:] = ['generate', 'hello']\n"
        "sys.exit(test_cli.run_fake('normal', None))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env=environment(),
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (130, b"")
    assert done.stdout.decode().startswith("def f")


def test_a_signal_while_loading_shows_the_cursor_again() -> None:
    """In a terminal."""
    main, child_end = pty.openpty()
    with subprocess.Popen(
        owned_command("slow_load", "generate", "hello"),
        stdin=child_end,
        stdout=child_end,
        stderr=child_end,
        env=environment(),
        start_new_session=True,
    ) as child:
        os.close(child_end)
        seen = b""
        while b"loading" not in seen or b"\x1b[?25l" not in seen:
            seen += os.read(main, 1000)
        child.send_signal(signal.SIGTERM)
        with contextlib.suppress(OSError):
            while data := os.read(main, 1000):
                seen += data
        assert child.wait(30) == 143
    os.close(main)
    assert seen.rindex(b"\x1b[?25h") > seen.rindex(b"\x1b[?25l")
    assert b"Traceback" not in seen


def test_an_ignored_signal_stays_ignored(load: FakeLoad) -> None:
    previous = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:

        def pieces() -> Iterator[tuple[str, str]]:
            signal.raise_signal(signal.SIGTERM)
            yield from PIECES

        load.decoder.pieces = pieces
        assert cli.main(["generate", "hello"]) == 0
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, previous)


# ------------------------------------------------------------------------------------------------------------ demo


def test_demo_prompts_are_three() -> None:
    prompts = demo.demo_prompts()
    assert len(prompts) == 3
    assert all(prompt.task_id.startswith("HumanEval/") and "def " in prompt.text for prompt in prompts)


def result_of(ids: Sequence[int], method: str = "ouroboros") -> Any:
    return FakeResult("", list(ids), [1], "length", stats_of(len(ids), method))


def test_a_row_counts_the_prompts_whose_texts_differ() -> None:
    plain = [result_of([1, 2, 3]), result_of([4, 5]), result_of([6])]
    row = demo.row_of("lookahead", [result_of([1, 2, 3]), result_of([4, 9]), result_of([6, 7])], plain)
    assert (row.method, row.other_texts, row.stats.new_tokens) == ("lookahead", 2, 7)
    stats = row.stats
    assert row.seconds == stats.prefill_seconds + stats.draft_prefill_seconds + stats.decode_seconds > 0


def test_the_clock_stands_before_each_line() -> None:
    times = iter(range(10))
    clock = Clock(lambda: float(next(times)))
    found = [*clock.lines([("a", "draft"), ("b\nc", "phrase")]), *clock.lines([("\n", "bonus"), ("", "draft")])]
    margins = [text for text, source in found if not source]
    assert "".join(text for text, source in found if source) == "ab\nc\n"
    assert margins == ["  1.00 s │ ", "  2.00 s │ "]
    assert clock.at_start


@pytest.mark.parametrize(("seconds", "words"), [(2.0, "2.0 × as fast."), (0.25, "no gain here: 0.25 × as fast.")])
def test_the_picture_shows_speeds_sources_and_who_was_ahead(seconds: float, words: str) -> None:
    def row(method: str, bonus: int, took: float, other_texts: int = 0) -> demo.MethodRow:
        counted = dataclasses.replace(
            stats_of(40, method),
            accepted_tokens=40 - bonus,
            accepted_by_source={"draft": 30 - bonus, "phrase": 10} if bonus < 40 else {},
            prefill_seconds=0.0,
            draft_prefill_seconds=0.0,
            decode_seconds=took,
        )
        return demo.MethodRow(method, counted, other_texts)

    rows = [row("autoregressive", 40, seconds), row("ouroboros", 10, 1.0), row("lookahead", 10, 1.0, 2)]
    lines = [str(part) for part in of_demo(rows, {"autoregressive": "plain decoding"}, "3 texts", {})]
    bars = {line.split("  ")[1]: line for line in lines if "░" in line and "target model" not in line}
    assert list(bars) == ["plain decoding", "ouroboros", "lookahead"]
    assert "█" not in bars["plain decoding"]
    if seconds > 1:  # the longest bar, whose parts come out even
        assert [bars["ouroboros"].count(block) for block in "█▓░"] == [22, 11, 11]
    assert "✓ same text" in bars["ouroboros"]
    assert "✗ 2 other texts" in bars["lookahead"]
    assert lines[-1].endswith(words)


def test_total_sums_what_was_counted_and_keeps_the_rest() -> None:
    one, two = stats_of(3), dataclasses.replace(stats_of(5), seed=9)
    both = demo.total([one, two])
    assert (both.new_tokens, both.target_forwards, both.draft_forwards, both.decode_seconds) == (8, 4, 6, 1.0)
    assert both.accepted_by_source == {"draft": 8}
    assert both.accepted_by_depth == (2, 2, 2, 1, 1)
    assert (both.method, both.seed) == (one.method, one.seed)
    assert both.tokens_per_target_forward == 2.0


def test_demo_writes_every_text_twice_with_ones_own_pair(
    load: FakeLoad, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = FakeDecoder()
    monkeypatch.setattr(demo, "beside", lambda decoder, method: plain)
    args = ["--target", "T", "--draft", "D", "--max-new-tokens", "8", "--temperature", "0", "--dtype", "bfloat16"]
    assert cli.main(["demo", *args]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.count(" s │ def f():\n") == 6
    assert out.index("plain decoding\n") < out.index("Ouroboros\n")
    assert "same text" in out
    assert "greedy" in out
    assert [(call["target"], call["draft"], call["place"]) for call in load.calls] == [("T", "D", Place("bfloat16"))]
    assert load.decoder.requests == plain.requests
    expected = SamplingParams(max_new_tokens=8, temperature=0, seed=1)
    assert load.decoder.requests[1:] == [(prompt.text, expected) for prompt in demo.demo_prompts()]
    assert load.decoder.closed == 1


# ---------------------------------------------------------------------------------------------- the real thing


def test_the_embedded_pair_streams_the_text_that_json_reports(tmp_path: Path) -> None:
    (tmp_path / "prompt").write_bytes(b"def add(a, b):\r\n")
    args = ["generate", "--prompt-file", str(tmp_path / "prompt"), "--max-new-tokens", "24", "--threads", "1"]
    text = run(real_command(*args))
    assert (text.returncode, text.stderr) == (0, b"")
    done = run(real_command(*args, "--json"))
    found = json.loads(done.stdout)
    assert (done.returncode, done.stderr) == (0, b"")
    assert found["text"].encode() == text.stdout
    assert len(found["token_ids"]) == found["stats"]["new_tokens"] <= 24
    plain = run(real_command(*args, "--json", "--method", "autoregressive"))
    assert json.loads(plain.stdout)["token_ids"] == found["token_ids"]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--target", "/nowhere/at-all", "--method", "lookahead"], "/nowhere/at-all"),
        (["--device", "abacus"], "abacus"),
        (["--dtype", "int3"], "int3"),
        (["--dtype", "fp16"], "did you mean float16?"),
        (["--target", ".", "--method", "speculative"], "a method that needs none (autoregressive"),
        (["--draft", ".", "--method", "prompt_lookup"], "prompt_lookup"),
        (["--device", "cuda:99"], "cuda:99"),
    ],
)
def test_the_real_loader_fails_in_one_line(args: list[str], words: str) -> None:
    done = run(real_command("generate", "hello", *args))
    err = done.stderr.decode()
    assert (done.returncode, done.stdout) == (2, b"")
    assert err.startswith(ERROR)
    assert words in err
    assert err.count("\n") == 1


def test_the_real_thing_ends_well_when_interrupted(tmp_path: Path) -> None:
    pool = tmp_path / "pool"
    args = ["generate", "def f(", "--max-new-tokens", "1900", "--ignore-eos", "--pool", str(pool)]
    status, out, err = interrupted(*real_command(*args), wait_for="out")
    assert (status, err) == (130, "")
    assert out
    assert pool.exists()


def test_the_real_thing_ends_well_when_its_output_closes() -> None:
    command = real_command("generate", "def f(", "--max-new-tokens", "1900", "--ignore-eos")
    done = run(["bash", "-c", '"$@" | head -c 1; exit ${PIPESTATUS[0]}', "bash", *command])
    assert done.returncode == 2
    assert done.stderr.decode() == f"{ERROR}the output was closed before its end\n"
    assert len(done.stdout) == 1


@pytest.mark.slow
def test_the_real_demo_finds_the_same_text_for_every_method() -> None:
    done = run(real_command("demo", "--max-new-tokens", "24", "--all"), COLUMNS="120")
    assert done.returncode == 0  # standard error may say of a method that rows cost too much here
    out = done.stdout.decode()
    assert "grown to 222 M and 35 M parameters" in out
    assert out.count("✓ same text") == len(METHODS) - 1


def test_explain_says_what_each_step_chose() -> None:
    words = ["generate", "def add(a, b):", "--max-new-tokens", "8", "--ignore-eos", "--explain"]
    done = run(real_command(*words))
    steps = [line for line in done.stderr.decode().splitlines() if line.startswith("step ")]
    assert steps
    assert sum(int(line.rsplit(" tokens expected, ")[1].split()[0]) for line in steps) >= 8
    for more in (["--set", "control=off"], ["--method", "speculative"]):
        refused = run(real_command(*words, *more))
        assert refused.returncode == 2
        assert b"--explain" in refused.stderr
