"""The files of the server's page, and of its examples, as they lie there; no browser and no server needed."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.fake_server import POLICY, WEB

EXAMPLES = Path(__file__).parents[1] / "examples" / "server"


def test_small_and_of_known_kinds() -> None:
    files = list(WEB.iterdir())
    assert {file.suffix for file in files} == {".html", ".css", ".js"}
    assert sum(file.stat().st_size for file in files) < 60_000


def test_nothing_inline_and_nothing_foreign() -> None:
    """So that the strictest Content-Security-Policy lets the page work, and no other host learns of a visit."""
    page = (WEB / "index.html").read_text()
    assert POLICY in page
    assert re.findall(r"<script\b[^>]*>[^<]", page) == []
    assert re.findall(r"<style\b|\sstyle=|\son[a-z]+=", page) == []
    for file in WEB.iterdir():
        urls = set(re.findall(r"https?:/*[\w.]+", file.read_text()))
        assert urls <= {"http://www.w3.org"}, file.name  # a name space, not an address


def test_text_never_becomes_markup() -> None:
    for file in WEB.glob("*.js"):
        assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b", file.read_text()), (
            file.name
        )


def test_names_agree() -> None:
    """What the code looks for by its id is in the page, and what it loads is a file."""
    page = (WEB / "index.html").read_text()
    ids = re.findall(r'\sid="(\w+)"', page)
    assert len(ids) == len(set(ids))
    code = "".join(file.read_text() for file in WEB.glob("*.js"))
    assert set(re.findall(r'\$\("(\w+)"\)', code)) <= set(ids)
    assert set(re.findall(r'(?:for|aria-describedby)="(\w+)"', page)) <= set(ids)
    for name in re.findall(r'(?:href|src)="(?!data:)([^"]+)"|from "\./([^"]+)"', page + code):
        assert (WEB / (name[0] or name[1])).is_file(), name


def test_the_dashboard() -> None:
    dashboard = json.loads((EXAMPLES / "grafana.json").read_text())
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for panel in panels
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24
    for panel in panels:
        assert panel["type"] == "row" or panel["targets"], panel["title"]


def test_the_dashboard_asks_for_what_there_is() -> None:
    pytest.importorskip("prometheus_client")
    from ouroboros.server.metrics import Metrics
    from ouroboros.serving.engine import EngineLoad

    text = Metrics().text(EngineLoad(running=0, waiting=0, kept=0, kv_bytes=0), {}).decode()
    kinds = dict(re.findall(r"^# TYPE (\S+) (\w+)$", text, re.MULTILINE))
    there = {name + ("_bucket" if kind == "histogram" else "") for name, kind in kinds.items()}
    asked = set(re.findall(r"ouroboros:\w+", (EXAMPLES / "grafana.json").read_text()))
    assert asked <= there
    assert len(asked) > 15
