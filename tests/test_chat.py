"""``ouroboros chat`` on the embedded pair: turns, commands, caches that go on, Ctrl-C."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import select
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

import ouroboros
from ouroboros import Decoder, cli
from ouroboros.commands.options import Place
from ouroboros.directories import cache_directory
from ouroboros.kernels.library import library
from ouroboros.stats import Stats
from tests.children import answering
from tests.pairs import EMBEDDED


@pytest.fixture
def decoder(monkeypatch: pytest.MonkeyPatch) -> Decoder:
    decoder = ouroboros.load(dtype="float32")
    monkeypatch.setattr(cli, "_load", lambda *args: decoder)
    return decoder


@pytest.fixture
def stats(monkeypatch: pytest.MonkeyPatch) -> list[Stats]:
    """Of each turn, as the screen was asked to show them."""
    seen: list[Stats] = []
    monkeypatch.setattr("ouroboros._render.Screen.figures", lambda screen, stats, note="": seen.append(stats))
    return seen


def talk(monkeypatch: pytest.MonkeyPatch, text: str | bytes, *args: str) -> int:
    data = text.encode() if isinstance(text, str) else text
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))
    return cli.main(["chat", "--max-new-tokens", "12", *args])


def test_turns_go_on_in_the_caches(
    decoder: Decoder, stats: list[Stats], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert talk(monkeypatch, "def add(a, b):\n\ndef sub(a, b):\n", "--system", "# code") == 0
    out, err = capsys.readouterr()
    messages = [{"role": "system", "content": "# code"}, {"role": "user", "content": "def add(a, b):"}]
    first = decoder.generate(messages, max_new_tokens=12)
    assert first.text is not None
    messages += [{"role": "assistant", "content": first.text}, {"role": "user", "content": "def sub(a, b):"}]
    second = decoder.generate(messages, max_new_tokens=12)
    assert out == f"{first.text}\n{second.text}\n"
    assert err == ""
    assert [turn.prompt_tokens for turn in stats] == [len(first.prompt_token_ids), len(second.prompt_token_ids)]
    assert stats[0].cached_tokens == 0
    assert stats[1].cached_tokens >= len(first.prompt_token_ids)


def test_commands_and_lines_that_go_on(
    decoder: Decoder, stats: list[Stats], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "def add(a):\\\n    x\ndef sub(a):\n/undo\ndef sub(a):\n/clear\n/what\ndef add(a):\\\n    x\n/exit\nnever\n"
    assert talk(monkeypatch, text) == 0
    err = capsys.readouterr().err
    assert "no such command: '/what'" in err
    sizes = [turn.prompt_tokens for turn in stats]
    assert len(sizes) == 4
    assert sizes[1] == sizes[2] > sizes[0] == sizes[3]
    assert decoder.tokenizer is not None
    assert sizes[0] == len(decoder.tokenizer.encode("def add(a):\n    x\n"))


def test_a_conversation_that_became_too_long_can_go_on(
    decoder: Decoder, stats: list[Stats], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert talk(monkeypatch, "x = 1; " * 2000 + "\ndef add(a):\n") == 0
    assert "the target model's context allows at most" in capsys.readouterr().err
    assert len(stats) == 1


def test_templates(decoder: Decoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stats: list[Stats]) -> None:
    (tmp_path / "template").write_text("{% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %}")
    assert talk(monkeypatch, "hello\n", "--chat-template", str(tmp_path / "template")) == 0
    assert decoder.tokenizer is not None
    assert stats[0].prompt_tokens == len(decoder.tokenizer.encode("user: hello"))


def test_what_cannot_be_talked_with(
    decoder: Decoder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert decoder.tokenizer is not None
    decoder.tokenizer.hf.chat_template = None
    assert talk(monkeypatch, "hello\n") == 2
    assert "no chat template: give one with --chat-template FILE" in capsys.readouterr().err
    decoder.tokenizer = None
    assert talk(monkeypatch, "hello\n") == 2
    assert "chat needs a tokenizer" in capsys.readouterr().err


def test_bytes_that_are_no_text(
    decoder: Decoder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert talk(monkeypatch, b"a\xffb\n") == 2
    assert "standard input must be UTF-8 text, not with the byte 0xff" in capsys.readouterr().err


def test_defaults(monkeypatch: pytest.MonkeyPatch, decoder: Decoder) -> None:
    seen: list[object] = []

    def load(*args: object) -> Decoder:
        seen.append(args)
        return decoder

    monkeypatch.setattr(cli, "_load", load)
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert cli.main(["chat"]) == 0
    assert seen == [(None, None, "ouroboros", {}, Place(), None, False)]


def test_ctrl_c_stops_an_answer_and_no_more(tmp_path: Path) -> None:
    pool = tmp_path / "pool"
    args = ["--target", str(EMBEDDED / "target"), "--draft", str(EMBEDDED / "draft"), "--pool", str(pool)]
    args += ["--threads", "1", "--ignore-eos", "--max-new-tokens", "1500"]
    with answering("def add(a, b):", *args) as (process, _):
        process.send_signal(signal.SIGINT)
        out, err = b"", b""
        with contextlib.suppress(subprocess.TimeoutExpired):
            out, err = process.communicate(b"/exit\n", timeout=60)
    assert (process.returncode, err) == (0, b"")
    assert out.endswith(b"\n")
    assert len(out) < 5000
    assert pool.exists()


def test_arguments_of_the_template(
    decoder: Decoder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stats: list[Stats],
    capsys: pytest.CaptureFixture[str],
) -> None:
    template = tmp_path / "template"
    template.write_text("{{ count + 1 }}{{ word }}{% for m in messages %}{{ m.content }}{% endfor %}")
    given = ["--template-arg", "count=41", "--template-arg", "word=a=b", "--chat-template", str(template)]
    assert talk(monkeypatch, "hello<|endoftext|>\n", *given) == 0
    assert decoder.tokenizer is not None
    encode = decoder.tokenizer.encode
    assert stats[0].prompt_tokens == len(encode("42a=bhello<")) + len(encode("|endoftext|>"))
    assert talk(monkeypatch, "hello<|endoftext|>\n", *given, "--control-tokens") == 0
    assert stats[1].prompt_tokens == len(encode("42a=bhello")) + 1
    for wrong, words in [("more=1", "takes no 'more'"), ("more", "NAME=VALUE"), ("tokenize=1", "'tokenize'")]:
        assert talk(monkeypatch, "hello\n", *given, "--template-arg", wrong) == 2 or "tokenize" in wrong
        assert words in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("when", ["answering", "waiting"])
def test_a_signal_to_end_saves_the_pool(tmp_path: Path, number: signal.Signals, when: str) -> None:
    pool = tmp_path / "pool"
    args = ["--method", "suffix_decoding", "--pool", str(pool), "--threads", "1", "--ignore-eos"]
    args += ["--max-new-tokens", "1500" if when == "answering" else "20"]
    with answering("def add(a, b):", *args) as (process, _):
        if when == "waiting":
            time.sleep(3)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (128 + number, b"")
    assert len(out) < 5000
    assert [file.name for file in tmp_path.iterdir()] == ["pool"]


def at_a_terminal(tmp_path: Path, *typed: bytes) -> tuple[int, str]:
    """``ouroboros chat`` with a terminal, to which the parts are typed, each when a prompt is there; x03 is Ctrl-C."""
    pty = pytest.importorskip("pty")
    main, side = pty.openpty()
    code = "import sys; from ouroboros.cli import main; sys.exit(main())"
    args = ["chat", "--threads", "1", "--max-new-tokens", "4", "--seed", "1", "--quiet", "--engine", "plain"]

    def take_terminal() -> None:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    mine = tmp_path / "ouroboros"
    mine.mkdir()
    library()  # compiled if it never was, and not by the child anew
    (mine / "kernels").symlink_to(cache_directory() / "kernels")
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "TERM": "dumb", "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-c", code, *args],
        stdin=side, stdout=side, stderr=side, env=environment, start_new_session=True,
        preexec_fn=take_terminal,
    ) as process:  # fmt: skip
        os.close(side)
        out, left, last, again = b"", list(typed), b"", 4
        with contextlib.suppress(OSError):  # Linux's word for a terminal whose other side is closed
            while again:
                if not select.select([main], [], [], 15)[0]:  # what is typed before it listens may be lost
                    again -= 1
                    os.write(main, last)
                    continue
                more = os.read(main, 1000)
                if not more:
                    break
                out += more
                if out.endswith(b">>> ") and left:
                    last = left.pop(0)
                    os.write(main, last)
        if not again:
            process.kill()
        status = process.wait(60)
    os.close(main)
    return status, out.decode().replace("\r", "")


def test_pasted_lines_are_one_message(tmp_path: Path) -> None:
    status, out = at_a_terminal(tmp_path, b"def add(a, b):\n    c = a\n    return\n", b"/exit\n")
    assert (status, out.count(">>> ")) == (0, 2)
    history = tmp_path / "ouroboros" / "chat-history"
    assert history.stat().st_mode & 0o077 == 0
    assert "def add(a, b):" in history.read_text()


def test_ctrl_c_at_the_prompt_forgets_the_line_and_ends_the_second_time(tmp_path: Path) -> None:
    status, out = at_a_terminal(tmp_path, b"nonsense\x03", b"/help\n", b"\x03", b"\x03")
    assert status == 130
    assert out.count("another Ctrl-C ends the conversation") == 2
    assert "Traceback" not in out


def test_a_closed_standard_input_is_one_line() -> None:
    command = f"exec {sys.executable} -m ouroboros.cli chat --method lookahead <&-"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1] == "ouroboros: error: cannot read standard input: it is closed"
