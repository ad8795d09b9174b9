"""The documentation: every block of code in it runs and prints what it says, every link leads somewhere."""

from __future__ import annotations

import ast
import contextlib
import io
import re
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from memhp.scenario import load

ROOT = Path(__file__).parents[2]
READMES = (ROOT / "README.md", ROOT / "README.zh-CN.md")
CONTRIBUTORS = (ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md")
ENGLISH = tuple(sorted((ROOT / "docs").glob("*.md")))
PAGES = (*READMES, *ENGLISH)
CHINESE = tuple(sorted((ROOT / "docs" / "zh").glob("*.md")))
VERSIONS = {READMES[0]: READMES[1]} | {page: page.parent / "zh" / page.name for page in ENGLISH}
"""Each English page, and where its Chinese version is."""
FACTS = ROOT / "docs" / "linux-behaviour.md"

FENCE = re.compile(r"^```(?P<info>[^\n]*)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)
TIME = re.compile(r"\b\d+(\.\d+)?(e-\d+)? (us|ms|s)\b")
FACT = re.compile(r"^\*\*(\d+\.\d+[a-z]?)\*\*(.*?)(?=^\*\*\d+\.\d+[a-z]?\*\*|^#|\Z)", re.MULTILINE | re.DOTALL)
COMMENT = re.compile(r"(?<!\S)#(?!!).*")
COMMENTED = frozenset({"python", "py", "sh", "yaml"})
"""Languages in which the Chinese pages may have comments of their own."""
TABLE = re.compile(r"(?:^\|.*\n)+", re.MULTILINE)
NAME = re.compile(r"(?<!`)`([^`]+)`(?!`)")
NUMBER = re.compile(r"(?<![A-Za-z0-9_.])\d(?:[\d.,]*\d)?")
LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]*))?\)")
SUMMARIES = frozenset({"13"})
"""Sections that only repeat facts of others."""


@dataclass(frozen=True)
class Block:
    """One fenced block: its language, whether it needs QEMU, the name of a scenario in it, its text."""

    language: str
    live: bool
    scenario: str
    body: str
    line: int


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = []
    for match in FENCE.finditer(text):
        words = match["info"].split() or [""]
        names = [word.removeprefix("scenario=") for word in words[1:] if word.startswith("scenario=")]
        found.append(
            Block(words[0], "qemu" in words, names[0] if names else "", match["body"], text.count("\n", 0, match.start()) + 1)
        )
    return found


def agrees(shown: str, real: str) -> bool:
    """Compare with ``…`` standing for anything: alone on a line for lines, elsewhere for a part of its line."""
    pattern = ""
    for line in TIME.sub("TIME", shown).splitlines():
        if line.strip() == "…":
            pattern += r"(?:[^\n]*\n)*?"
        else:
            pattern += r"[^\n]*".join(re.escape(part) for part in line.rstrip().split("…")) + r"\n"
    lines = [line.rstrip() for line in TIME.sub("TIME", real).splitlines()]
    return re.fullmatch(pattern, "".join(f"{line}\n" for line in lines)) is not None


def named(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


EVERY_PAGE = pytest.mark.parametrize("page", PAGES, ids=named)


@EVERY_PAGE
def test_python_blocks_run_in_order_and_print_what_stands_below_them(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Python blocks of a page are one program; an output block below one is what it prints."""
    monkeypatch.chdir(ROOT)
    namespace: dict[str, Any] = {"__name__": "docs"}
    printed: str | None = None
    for block in blocks_of(page):
        if block.language == "python":
            out = io.StringIO()
            code = compile("\n" * block.line + block.body, str(page), "exec")
            with contextlib.redirect_stdout(out):
                exec(code, namespace)  # noqa: S102 - the page's own program
            printed = out.getvalue()
        elif block.language == "output":
            assert printed is not None, f"{named(page)}:{block.line}: output of no program"
            assert agrees(block.body, printed), f"{named(page)}:{block.line} prints\n{printed}"
            printed = None


@EVERY_PAGE
def test_console_blocks_print_what_they_say(page: Path, tmp_path: Path) -> None:
    """Each ``$ memhp …`` is run where the page's scenarios lie; its output, and ``$ echo $?``, are compared."""
    run_console_blocks(page, tmp_path, live=False)


@pytest.mark.qemu
@pytest.mark.parametrize("page", [page for page in PAGES if any(block.live for block in blocks_of(page))], ids=named)
def test_console_blocks_of_real_kernels_print_what_they_say(page: Path, tmp_path: Path) -> None:
    """The same for blocks that need QEMU, ```` ```console qemu ````."""
    run_console_blocks(page, tmp_path, live=True)


def run_console_blocks(page: Path, tmp_path: Path, *, live: bool) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    for block in blocks_of(page):
        if block.scenario:
            (tmp_path / block.scenario).write_text(block.body, encoding="utf-8")
    for block in blocks_of(page):
        if block.language != "console" or block.live is not live:
            continue
        code = 0
        for part in re.split(r"^\$ ", block.body, flags=re.MULTILINE)[1:]:
            command, _, shown = part.partition("\n")
            words = command.split()
            if words == ["echo", "$?"]:
                assert shown.strip() == str(code), f"{named(page)}:{block.line}: {code} is the exit code"
            elif words[0] == "memhp":
                ran = subprocess.run(
                    [sys.executable, "-m", "memhp.cli", *words[1:]],
                    cwd=tmp_path,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                    timeout=300,
                    check=False,
                )
                code = ran.returncode
                assert agrees(shown, ran.stdout), f"{named(page)}:{block.line}: {command} prints\n{ran.stdout}"


@EVERY_PAGE
def test_scenarios_load(page: Path, tmp_path: Path) -> None:
    """Each YAML block that is named as a scenario is one, unless its name says that it is broken."""
    for block in blocks_of(page):
        if block.scenario and not block.scenario.startswith("broken"):
            file = tmp_path / block.scenario
            file.write_text(block.body, encoding="utf-8")
            load(file)


@pytest.mark.parametrize("page", [*PAGES, *CHINESE, *CONTRIBUTORS], ids=named)
def test_links_lead_somewhere(page: Path) -> None:
    """Every relative link is a file, and its anchor a heading there."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for target, anchor in LINK.findall(text):
        file = (page.parent / target).resolve() if target else page
        assert file.exists(), f"{named(page)}: {target}"
        if anchor:
            assert anchor in anchors(file), f"{named(page)}: {target}#{anchor}"


def anchors(page: Path) -> set[str]:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


# -- the Chinese pages


def test_every_page_has_a_chinese_version() -> None:
    """And no Chinese page has lost its English one."""
    assert {page.name for page in CHINESE} == {page.name for page in ENGLISH}


@pytest.mark.parametrize(("english", "chinese"), VERSIONS.items(), ids=[named(page) for page in VERSIONS])
def test_both_versions_of_a_page_have_the_same_structure(english: Path, chinese: Path) -> None:
    """The Chinese page has the headings, tables, code, names in backquotes, facts and links of the English one."""
    texts = english.read_text(encoding="utf-8"), chinese.read_text(encoding="utf-8")
    for part in (levels, tables, code, names, fact_numbers):
        theirs, ours = map(part, texts)
        assert ours == theirs, part.__name__
    at_the_top = [re.fullmatch(r"\[.*\]\((.*)\)", text.splitlines()[2]) for text in texts]
    assert [link and (page.parent / link[1]).resolve() for link, page in zip(at_the_top, (english, chinese), strict=True)] == [
        chinese,
        english,
    ]
    theirs, ours = (links(page) - Counter({(english, False): 1, (chinese, False): 1}) for page in (english, chinese))
    assert ours == Counter({(VERSIONS.get(page, page), anchor): times for (page, anchor), times in theirs.items()})


@pytest.mark.parametrize("english", ENGLISH, ids=named)
def test_both_versions_of_a_page_say_the_same_numbers(english: Path) -> None:
    """A fact that has changed in one language has often changed in a number."""
    theirs, ours = (numbers(page.read_text(encoding="utf-8")) for page in (english, VERSIONS[english]))
    assert ours == theirs


def numbers(text: str) -> set[str]:
    return set(NUMBER.findall(LINK.sub("", FENCE.sub("", text))))


def levels(text: str) -> list[int]:
    return [len(marks) for marks in re.findall(r"^(#+) ", FENCE.sub("", text), re.MULTILINE)]


def tables(text: str) -> list[list[int]]:
    """Count the bars in each row of each table."""
    return [[row.count("|") - row.count("\\|") for row in table.splitlines()] for table in TABLE.findall(FENCE.sub("", text))]


def code(text: str) -> list[str]:
    """Give each block of code with its info string, without the words of its comments."""
    return [
        COMMENT.sub("#", block.group()) if block["info"].partition(" ")[0] in COMMENTED else block.group()
        for block in FENCE.finditer(text)
    ]


def names(text: str) -> set[str]:
    return {" ".join(name.split()) for name in NAME.findall(FENCE.sub("", text))}


def links(page: Path) -> Counter[tuple[Path, bool]]:
    """Count the links of a page: the file to which one leads, and whether it leads to a place in it."""
    found = LINK.findall(FENCE.sub("", page.read_text(encoding="utf-8")))
    return Counter(((page.parent / target).resolve() if target else page, bool(anchor)) for target, anchor in found)


# -- the facts


def facts() -> dict[str, str]:
    return {number: " ".join(text.split()) for number, text in FACT.findall(FACTS.read_text(encoding="utf-8"))}


def marked() -> dict[str, str]:
    """Give each number in a ``fact`` mark of the tests, with the file that has it; nothing is imported for it."""
    found: dict[str, str] = {}
    for file in sorted((ROOT / "tests").rglob("test_*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("mark.fact"):
                numbers = [arg.value for arg in node.args if isinstance(arg, ast.Constant)]
                found.update((str(number), named(file)) for number in numbers)
    return found


def test_each_fact_stands_once_and_in_order() -> None:
    """No number is used twice, and they ascend within the page."""
    numbers = fact_numbers(FACTS.read_text(encoding="utf-8"))
    assert len(numbers) > 150
    assert numbers == sorted(numbers, key=place)


def fact_numbers(text: str) -> list[str]:
    return [number for number, _ in FACT.findall(text)]


def place(number: str) -> tuple[int, int, str]:
    section, _, rest = number.partition(".")
    digits = rest.rstrip("abcdefghijklmnopqrstuvwxyz")
    return int(section), int(digits), rest[len(digits) :]


def test_each_fact_has_evidence() -> None:
    """A fact says where it was seen or read."""
    numbers = [number for number, text in facts().items() if number.split(".")[0] not in SUMMARIES and "*Observed" not in text]
    unread = [number for number in numbers if "*Read" not in facts()[number]]
    assert unread == []


def test_each_marked_fact_is_documented() -> None:
    """The number in a test's ``fact`` mark is one of docs/linux-behaviour.md."""
    known = facts()
    unknown = {number: file for number, file in marked().items() if number not in known}
    assert unknown == {}


def test_each_modelled_fact_has_a_test() -> None:
    """A fact is tested, or is marked as not modelled; one with a letter may be tested under the number before it."""
    marks = marked()
    untested = [
        number
        for number, text in facts().items()
        if "(not modelled" not in text
        and number.split(".")[0] not in SUMMARIES
        and number not in marks
        and number.rstrip("abcdefghijklmnopqrstuvwxyz") not in marks
    ]
    assert untested == []
