"""What mkdocs does not know of this repository: the README is the site's first page, and links may leave docs/.

A file of the repository that a page links to is put into the site, under ``repository/``, and the link leads there; so
every link is checked, and the site stands for itself. A link to nothing is a warning, which ends a strict build.
"""

from __future__ import annotations

import logging
import os
import posixpath
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import click
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

LINK = re.compile(r"(?<!\\)\[([^][]*)\]\(([^)#\s]+)(#[^)\s]*)?\)")
CODE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
COMMANDS = "<!-- commands -->"
ALWAYS = ("CHANGELOG.md", "CONTRIBUTING.md")
LOG = logging.getLogger("mkdocs.hooks.site")
ROOT = Path(__file__).resolve().parent.parent


def in_site(path: str) -> str:
    """Where a file of the repository lies in the site."""
    if path == "README.md":
        return "index.md"
    return path.removeprefix("docs/") if path.startswith("docs/") else f"repository/{path}"


def in_repository(path: str) -> str:
    """The reverse."""
    if path == "index.md":
        return "README.md"
    return path.removeprefix("repository/") if path.startswith("repository/") else f"docs/{path}"


def targets(path: str) -> set[str]:
    """Of a Markdown file's links, the files of the repository outside docs/ that they name."""
    found = set()
    text = CODE.sub("", (ROOT / path).read_text(encoding="utf-8"))
    for match in LINK.finditer(text):
        name = match[2]
        if "://" not in name and not name.startswith("mailto:"):
            target = posixpath.normpath(posixpath.join(posixpath.dirname(path), name))
            if (ROOT / target).is_file() and not target.startswith(("docs/", "../")) and target != "README.md":
                found.add(target)
    return found


def commands() -> Iterator[str]:
    """The help of every command, as the terminal shows it."""
    sys.path.insert(0, str(ROOT / "src"))
    from ouroboros.cli import cli

    def help_of(command: click.Command, name: str, parent: click.Context | None, level: int) -> Iterator[str]:
        context = click.Context(command, info_name=name, parent=parent, max_content_width=84, terminal_width=84)
        path = context.command_path
        yield f"{'#' * level} {path}\n\n```text\n{command.get_help(context)}\n```\n"
        if isinstance(command, click.Group):
            for each, below in sorted(command.commands.items()):
                yield from help_of(below, each, context, min(level + 1, 3))

    yield from help_of(cli, "ouroboros", None, 2)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    pages = ["README.md", *ALWAYS, *(f"docs/{file.src_uri}" for file in files.documentation_pages())]
    files.append(File.generated(config, "index.md", abs_src_path=str(ROOT / "README.md")))
    seen: set[str] = set()
    waiting = list(ALWAYS)
    while pages:
        for target in [*waiting, *targets(pages.pop())]:
            if target in seen:
                continue
            seen.add(target)
            files.append(File.generated(config, in_site(target), abs_src_path=str(ROOT / target)))
            if target.endswith(".md"):
                pages.append(target)
        waiting = []
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    here = page.file.src_uri
    source = in_repository(here)

    def lead(match: re.Match[str]) -> str:
        text, name, anchor = match[1], match[2], match[3] or ""
        if "://" in name or name.startswith("mailto:"):
            return match[0]
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), name))
        hidden = any(part.startswith(".") for part in target.split("/"))
        if (ROOT / target).is_dir() or hidden:  # a site has no listings, and leaves hidden files out
            return text
        if not (ROOT / target).is_file():
            LOG.warning("%s links to %r, which does not exist", source, name)
            return match[0]
        return f"[{text}]({os.path.relpath(in_site(target), posixpath.dirname(here) or '.')}{anchor})"

    if COMMANDS in markdown:
        return markdown.replace(COMMANDS, "\n".join(commands()))
    parts, end = [], 0
    for block in CODE.finditer(markdown):  # code is left as it is, but for what .ci/snippets.py is told
        parts += [LINK.sub(lead, markdown[end : block.start()]), block[0].replace("```python no-run", "```python", 1)]
        end = block.end()
    return "".join([*parts, LINK.sub(lead, markdown[end:])])
