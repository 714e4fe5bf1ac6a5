"""Files of prompts, as ``audit``, ``distill`` and ``bench`` read them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ouroboros.errors import InputError
from ouroboros.prompts import prompt_rows, read_prompts, read_text

MESSAGES = [{"role": "user", "content": "e"}]


@pytest.mark.parametrize(
    ("text", "prompts"),
    [
        ("one\r\nprompt\n", ["one\r\nprompt\n"]),
        ('{\n "a": "pretty"\n}\n', ['{\n "a": "pretty"\n}\n']),
        ('{"prompt": "a"}\n\n{"prompt": "b", "n": 1}', ["a", "b"]),
        ('{"prompt": "a"}\r\n{"prompt": "b"}\r\n', ["a", "b"]),
        ('{"prompt": [1, 2]}', [[1, 2]]),
        ('{"question": "b"}\n{"turns": ["c", "d"]}\n{"text": "d"}', ["b", "c", "d"]),
        (json.dumps({"messages": MESSAGES}), [MESSAGES]),
    ],
)
def test_prompt_files(tmp_path: Path, text: str, prompts: list[Any]) -> None:
    file = tmp_path / "p"
    file.write_bytes(text.encode())
    assert read_prompts(str(file)) == prompts


def test_a_line_comes_with_its_prompt(tmp_path: Path) -> None:
    file = tmp_path / "p"
    file.write_text('{"turns": ["c", "d"], "id": 3}')
    assert prompt_rows(str(file)) == [("c", {"turns": ["c", "d"], "id": 3})]
    file.write_text("text")
    assert prompt_rows(str(file)) == [("text", {})]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        (" \n", "is empty"),
        ('{"prompt": "a"}\nb\n', "line 2 of prompt file"),
        ('{"prompt": ""}', "line 1 of prompt file"),
        ('{"other": "a"}', "with a prompt as one of prompt, messages, question"),
    ],
)
def test_a_wrong_file_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "p"
    file.write_text(text)
    with pytest.raises(InputError, match=message):
        read_prompts(str(file))


def test_unreadable_text(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot read grammar '.*none': No such file"):
        read_text(str(tmp_path / "none"), "grammar")
    (tmp_path / "p").write_bytes(b"ab\xffc")
    with pytest.raises(InputError, match=r"grammar '.*' must be UTF-8 text; byte 2 \(0xff\) is not"):
        read_text(str(tmp_path / "p"), "grammar")
