"""Functions as documents, from which a small model learns a task: signature and docstring, then the body, then the end.

Whole files teach Python, but a model of a few million parameters sees a short docstring followed by its body too seldom
there. This file cuts such documents out of source text by its syntax tree. It knows nothing of files and licences.
"""

from __future__ import annotations

import ast
import builtins
import random
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

LEAST_LINES, MOST_LINES = 2, 24  # of a body behind its docstring
MOST_SUMMARY, MOST_EXAMPLES = 320, 6  # characters, lines
LARGEST = 1800  # characters of one function
FOLLOWED = 0.35  # share of documents in which a second function follows
_TYPING = "List Dict Set Tuple Optional Union Any Callable Iterable Iterator Sequence Mapping"
_MODULES = "math re itertools functools collections defaultdict Counter deque reduce"
KNOWN = frozenset([*dir(builtins), *_TYPING.split(), *_MODULES.split()])
_IMPORT = re.compile(
    r"^(?:from (?:typing|collections|itertools|functools|math) import [\w, ]+|import (?:math|re))$", re.M
)


@dataclass(frozen=True)
class Function:
    """``head``: what stands before the body: imports, signature, docstring. ``body``: the rest of the document."""

    head: str
    body: str

    @property
    def text(self) -> str:
        return self.head + self.body


def self_contained(text: str) -> bool:
    """Whether a document's functions use their arguments and plain Python alone: what can be told from the document."""
    try:
        with warnings.catch_warnings(action="ignore"):
            tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    bound, used = set(KNOWN), set[str]()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            (used if isinstance(node.ctx, ast.Load) else bound).add(node.id)
        elif isinstance(node, ast.arg):
            bound.add(node.arg)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef) or (isinstance(node, ast.ExceptHandler) and node.name):
            bound.add(str(node.name))
        elif isinstance(node, ast.alias):
            bound.add((node.asname or node.name).split(".")[0])
    return used <= bound


def module_functions(text: str) -> list[ast.FunctionDef]:
    """Functions at module level with a docstring and a body."""
    try:
        with warnings.catch_warnings(action="ignore"):
            tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    found = (node for node in tree.body if isinstance(node, ast.FunctionDef))
    return [node for node in found if ast.get_docstring(node) and len(node.body) > 1]


def whole_functions(text: str, least: int, most: int) -> Iterator[str]:
    """The functions as they stand, with their decorators, of so many characters."""
    lines = text.splitlines(keepends=True)
    for node in module_functions(text):
        first = min([node.lineno, *(part.lineno for part in node.decorator_list)])
        body = "".join(lines[first - 1 : node.end_lineno])
        if least <= len(body) <= most:
            yield body.rstrip() + "\n"


def short_functions(text: str) -> Iterator[Function]:
    """Functions of a short body, their docstrings cut to the summary and the first examples; some with the imports of
    their module above or with a second function behind, drawn by the text itself."""
    lines = text.splitlines(keepends=True)
    nodes = module_functions(text)
    imports = "\n".join(_IMPORT.findall(text)[:2])
    cut = [_cut(lines, node) for node in nodes]
    for place, one in enumerate(cut):
        if one is None:
            continue
        rng = random.Random(one.text)
        above = rng.choice(("", "", "\n\n", f"{imports}\n\n\n" if imports else ""))
        later = [other for other in cut[place + 1 :] if other is not None]
        behind = f"\n\n{later[0].text}" if later and rng.random() < FOLLOWED else ""
        yield Function(above + one.head, one.body + behind)


def _cut(lines: Sequence[str], node: ast.FunctionDef) -> Function | None:
    first, rest = node.body[0], node.body[1:]
    end = first.end_lineno or first.lineno
    body = "".join(lines[end : node.end_lineno]).strip("\n")
    if first.lineno <= node.lineno or not body or rest[0].lineno <= end:
        return None
    if not LEAST_LINES <= body.count("\n") + 1 <= MOST_LINES:
        return None
    indent = " " * first.col_offset
    doc = _short_docstring((ast.get_docstring(node) or "").strip())
    if not doc:
        return None
    signature = "".join(lines[node.lineno - 1 : first.lineno - 1])
    said = f'{indent}"""{doc[0]}'
    said += "".join(f"\n{indent}{line}" if line else "\n" for line in doc[1:])
    head = f'{signature}{said}"""\n' if len(doc) == 1 else f'{signature}{said}\n{indent}"""\n'
    if "\\" in said or '"""' in "".join(doc) or len(head) + len(body) > LARGEST:
        return None
    return Function(head, body + "\n")


def _short_docstring(text: str) -> list[str]:
    """Lines: the first paragraph, and the first examples where there are any."""
    lines = text.split("\n")
    end = next((i for i, line in enumerate(lines) if not line.strip()), len(lines))
    summary = [line.rstrip() for line in lines[:end]]
    while len(summary) > 1 and len("\n".join(summary)) > MOST_SUMMARY:
        summary.pop()
    start = next((i for i, line in enumerate(lines) if line.lstrip().startswith(">>>")), None)
    if start is None:
        return summary
    margin = len(lines[start]) - len(lines[start].lstrip())
    examples = []
    for line in lines[start:]:
        if not line.strip() or len(line) > 90:
            break
        examples.append(line[margin:].rstrip())
    kept = examples[:MOST_EXAMPLES]
    while kept and kept[-1].startswith((">>>", "...")) and len(kept) < len(examples):
        kept.pop()  # an example without its answer
    return [*(line for line in summary if not line.lstrip().startswith(">>>")), *kept] or summary
