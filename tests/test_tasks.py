"""Tasks: the package's samples, files as published, datasets on the hub."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from ouroboros.bench.tasks import Item, load_task, task_names
from ouroboros.errors import InputError

SAMPLED = [name for name in task_names() if name not in ("cnn_dailymail", "wmt16_de_en")]


def write(path: Path, *rows: Any) -> str:
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("name", SAMPLED)
def test_samples_lie_in_the_package(name: str) -> None:
    items = load_task(name)
    assert len(items) >= 16
    assert len({item.id for item in items}) == len(items)
    assert {item.task for item in items} == {name}
    assert bool(items[0].turns) == (name == "multi_turn")
    assert all(item.reference for item in items) == (name in ("humaneval", "mbpp", "gsm8k", "math_reasoning"))
    assert isinstance(items[0].prompt, str) == (name in ("humaneval", "mbpp", "gsm8k"))


def test_prompts_are_as_published() -> None:
    (mbpp,) = load_task("mbpp", limit=1)
    head = '"""\nWrite a function to sort a given matrix in ascending order according to the sum of its rows.\n'
    assert str(mbpp.prompt).startswith(head + "assert sort_matrix([[1, 2, 3]")
    assert str(mbpp.prompt).endswith(']]\n"""\n')
    assert len(mbpp.reference["tests"]) == 3
    (gsm8k,) = load_task("gsm8k", limit=1)
    assert isinstance(gsm8k.prompt, str)
    assert gsm8k.prompt.startswith("Q: There are 15 trees in the grove.")
    assert gsm8k.prompt.count("The answer is ") == 8
    assert gsm8k.prompt.count("\n\nQ: ") == 8
    assert gsm8k.prompt.endswith("at the farmers' market?\nA:")
    assert gsm8k.reference == {"answer": "18"}
    assert load_task("math_reasoning", limit=1)[0].reference == {"answer": "1000"}


def test_a_part_of_a_task() -> None:
    every = load_task("humaneval")
    assert load_task("humaneval", limit=3, offset=2) == every[2:5]
    assert load_task("humaneval", offset=22) == every[22:]
    for limit, offset in ((0, 0), (None, -1), (None, 24)):
        with pytest.raises(InputError, match="offset must be"):
            load_task("humaneval", limit=limit, offset=offset)


def test_conversations_are_messages_or_a_transcript() -> None:
    (item,) = load_task("multi_turn", limit=1)
    first, second = item.prompt[0]["content"], item.turns[0]  # type: ignore[index]
    user = {"role": "user", "content": first}
    assert item.ask(True) == (user,)
    more = ({"role": "assistant", "content": "Aloha."}, {"role": "user", "content": second})
    assert item.ask(True, ["Aloha."]) == (user, *more)
    assert item.ask(False) == f"User: {first}\n\nAssistant:"
    assert item.ask(False, [" Aloha.\n"]) == f"User: {first}\n\nAssistant: Aloha.\n\nUser: {second}\n\nAssistant:"
    assert Item("t", "1", "text").ask(True) == "text"
    assert Item("t", "1", [1, 2]).ask(True) == [1, 2]


def test_a_file_of_prompts(tmp_path: Path) -> None:
    rows = {"prompt": "a", "id": "x"}, {"turns": ["b", "c", "d"]}, {"prompt": [1, 2]}, {"turns": ["e"], "prompt": "f"}
    items = load_task(write(tmp_path / "mine.jsonl", *rows), offset=0)
    user = ({"role": "user", "content": "b"},)
    assert items == [
        Item("mine", "x", "a"),
        Item("mine", "2", user, ("c", "d")),
        Item("mine", "3", [1, 2]),
        Item("mine", "4", "f"),
    ]
    with pytest.raises(InputError, match="turns of item 1 of 'turns' must all be texts"):
        load_task(write(tmp_path / "turns", {"turns": ["a", 1]}))
    with pytest.raises(InputError, match="source is for the known tasks"):
        load_task(str(tmp_path / "mine.jsonl"), source="x")
    with pytest.raises(
        InputError, match=r"task must be one of humaneval, mbpp, .* or a file of prompts, not 'nothing'"
    ):
        load_task("nothing")


# --------------------------------------------------------------------------------------------------- published files


def test_json_lines_arrays_and_gz(tmp_path: Path) -> None:
    row = {"task_id": 7, "prompt": "Add.", "test_list": ["assert f(1) == 2"], "test_imports": ["import math"]}
    sanitized = tmp_path / "sanitized-mbpp.json"
    sanitized.write_text(json.dumps([row, row]))
    (item, _) = load_task("mbpp", source=str(sanitized))
    assert item.prompt == '"""\nAdd.\nassert f(1) == 2\n"""\n'
    assert item.reference == {"setup": "import math", "tests": ("assert f(1) == 2",)}
    packed = tmp_path / "HumanEval.jsonl.gz"
    packed.write_bytes(gzip.compress(b'{"task_id": "HumanEval/1", "prompt": "def f():\\n"}\n'))
    assert load_task("humaneval", source=str(packed)) == [Item("humaneval", "HumanEval/1", "def f():\n")]


def test_stories_of_cnn_dailymail(tmp_path: Path) -> None:
    for name in ("b", "a"):
        (tmp_path / f"{name}.story").write_text(f"{name} one.\n\ntwo.\n\n@highlight\n\nshort\n\n@highlight\n\nmore\n")
    items = load_task("cnn_dailymail", source=str(tmp_path))
    assert [item.id for item in items] == ["a", "b"]
    assert items[0].prompt == ({"role": "user", "content": "Summarize: a one.\n\ntwo."},)
    assert items[0].reference == {"summary": "short\nmore"}


@pytest.mark.parametrize(
    ("names", "form"),
    [
        (
            ("newstest2016-deen-src.de.sgm", "newstest2016-deen-ref.en.sgm"),
            '<doc><p>\n<seg id="1">{}</seg>\n</p></doc>',
        ),
        (("test.de", "test.en"), "{}\n"),
    ],
)
def test_parallel_files_of_wmt(tmp_path: Path, names: tuple[str, str], form: str) -> None:
    for name, text in zip(names, ("Guten Tag .", "Good day ."), strict=True):
        (tmp_path / name).write_text(form.format(text))
    (item,) = load_task("wmt16_de_en", source=str(tmp_path / names[0]))
    assert item.prompt == ({"role": "user", "content": "Translate German to English: Guten Tag ."},)
    assert item.reference == {"translation": "Good day ."}
    (tmp_path / names[1]).unlink()
    (item,) = load_task("wmt16_de_en", source=str(tmp_path / names[0]))
    assert item.reference == {"translation": ""}
    (tmp_path / names[1]).write_text(2 * form.format("x"))
    with pytest.raises(InputError, match=r"has 1 segments, .* beside it 2"):
        load_task("wmt16_de_en", source=str(tmp_path / names[0]))


def test_parquet(tmp_path: Path) -> None:
    rows = [{"question": "How many?", "answer": "1+1\n#### 1,002"}]
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        (tmp_path / "test.parquet").write_bytes(b"")
        with pytest.raises(InputError, match=r"needs pyarrow: pip install 'ouroboros-decoding\[bench\]'"):
            load_task("gsm8k", source=str(tmp_path / "test.parquet"))
        return
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "test.parquet")
    assert load_task("gsm8k", source=str(tmp_path / "test.parquet"))[0].reference == {"answer": "1002"}
    (tmp_path / "test.parquet").write_bytes(b"no table")
    with pytest.raises(InputError, match=r"test\.parquet' cannot be read"):
        load_task("gsm8k", source=str(tmp_path / "test.parquet"))


@pytest.mark.parametrize(
    ("task", "content", "message"),
    [
        ("gsm8k", b"text", "must be JSON lines or"),
        ("gsm8k", b"[]", "must be JSON lines or"),
        ("gsm8k", b"\xff", "cannot be read"),
        ("gsm8k", b'{"question": "a"}', "item 1 of '.*' is none of gsm8k: it has no answer"),
        ("mbpp", b'{"test_list": ["a"]}', r"item 1 of '.*' is none of mbpp \(KeyError: 'prompt'\)"),
        ("wmt16_de_en", b'{"translation": 3}', "item 1 of '.*' is none of wmt16_de_en"),
        ("rag", b'{"category": "qa", "turns": ["a"]}', "has no item of rag"),
    ],
)
def test_a_wrong_file_is_one_line(tmp_path: Path, task: str, content: bytes, message: str) -> None:
    file = tmp_path / "f.jsonl"
    file.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        load_task(task, source=str(file))
    assert "\n" not in str(caught.value)


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no sample of cnn_dailymail lies in the package: give source="):
        load_task("cnn_dailymail")
    for source in ("data/mbpp.jsonl", "/nowhere/mbpp", "mbpp"):
        with pytest.raises(InputError, match=f"no such file: '{source}'"):
            load_task("mbpp", source=source)
    with pytest.raises(InputError, match=r"holds no \.story file"):
        load_task("cnn_dailymail", source=str(tmp_path))


# --------------------------------------------------------------------------------------------------------- the hub


def test_datasets_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's two functions, played: a repository is a folder."""
    for name in ("README.md", "main/train.jsonl", "main/test-0.jsonl", "main/test-1.jsonl", "socratic/test.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path / name, {"question": name, "answer": "#### 3"})
    asked = []

    def list_repo_files(repository: str, *, repo_type: str) -> list[str]:
        asked.append((repository, repo_type))
        if repository != "openai/gsm8k":
            raise OSError("404\nnot found")
        return [str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*") if file.is_file()]

    def hf_hub_download(repository: str, file: str, *, repo_type: str) -> str:
        asked.append((repository, repo_type))
        return str(tmp_path / file)

    monkeypatch.setattr(huggingface_hub, "list_repo_files", list_repo_files)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hf_hub_download)
    items = load_task("gsm8k", source="openai/gsm8k")
    assert [str(item.prompt).split("\n\nQ: ")[-1] for item in items] == [
        "main/test-0.jsonl\nA:",
        "main/test-1.jsonl\nA:",
    ]
    assert set(asked) == {("openai/gsm8k", "dataset")}
    (item,) = load_task("gsm8k", source="openai/gsm8k/socratic/test.jsonl")
    assert "socratic" in str(item.prompt)
    with pytest.raises(InputError, match="which file of 'openai/gsm8k'"):
        load_task("rag", source="openai/gsm8k")
    with pytest.raises(
        InputError, match="'openai/other' is no file, and the hub did not give it as a dataset: 404 not"
    ):
        load_task("gsm8k", source="openai/other")
