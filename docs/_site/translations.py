"""Chinese pages, beside the English pages that they translate.

A page in ``docs/zh`` translates the page of that name in ``docs``, and ``README.zh-CN.md`` the
``README.md``. Prose alone is translated: a block of code is included from the English page, by

    ```{same}
    ```

which stands for the next one of the section. A forge shows the README raw, so its code is compared
instead. Formulas, numbers and code between words are compared in all pages.
``docs/zh/translated.toml`` has a hash of each English section as it was when it was translated.
"""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
RECORD = ROOT / "docs" / "zh" / "translated.toml"
SAME = "```{same}\n```"

NOT_TRANSLATED: tuple[str, ...] = ()
"""Pages of Start and Learn that exist in English alone until someone translates them."""

FRONT = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)
FENCE = re.compile(r"(`{3,})(.*)")
STRUCTURE = ("{toctree}",)
HEADING = re.compile(r"(#+) +(.*?)\s*$")
DISPLAYED = re.compile(r"\$\$(.+?)\$\$", re.DOTALL)
INLINE = re.compile(r"\$([^$]+)\$")
WORDS = re.compile(r"\\(?:text|quad|qquad)\b(?:\{[^}]*\})?")
SPAN = re.compile(r"`([^`]+)`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
NUMBER = re.compile(r"(?<![A-Za-z0-9_.])\d(?:[\d.,]*\d)?")


@dataclass
class Section:
    """A heading, what is written below it, and the blocks of code there."""

    level: int
    title: str
    prose: list[str] = field(default_factory=list)
    blocks: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "\n".join(self.prose)

    @property
    def hash(self) -> str:
        """Of the words, however they are broken into lines, and of the places of the blocks."""
        words = " ".join(self.text.split())
        return hashlib.sha256(f"{self.title}\n{words}".encode()).hexdigest()[:12]


def sections(text: str) -> list[Section]:
    """The sections of a page; what stands before the first heading is one without a title."""
    found, fence, block = [Section(0, "")], "", list[str]()
    for line in FRONT.sub("", text).splitlines():
        opened = FENCE.match(line)
        if fence:
            block.append(line)
            if line.strip() == fence:
                fence = ""
                if block[0].removeprefix("```").startswith(STRUCTURE):
                    continue
                found[-1].blocks.append("\n".join(block))
                found[-1].prose.append("```")
        elif opened:
            fence, block = opened[1], [line]
        elif heading := HEADING.match(line):
            found.append(Section(len(heading[1]), heading[2]))
        else:
            found[-1].prose.append(line)
    return [each for each in found if each.title or each.text.strip()]


def english_of(page: str) -> Path:
    """The file of an English page: of ``learn/chain.md``, or of ``README.md``."""
    return ROOT / page if page == "README.md" else ROOT / "docs" / page


def chinese_of(page: str) -> Path:
    """The file that translates it."""
    return ROOT / "README.zh-CN.md" if page == "README.md" else ROOT / "docs" / "zh" / page


def pages() -> list[str]:
    """The names of the pages of which there is a translation."""
    folder = ROOT / "docs" / "zh"
    names = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*.md"))]
    own = ("glossary.md", "start/about.md")  # without an English page; made of the README
    return ["README.md", *(name for name in names if name not in own)]


# --- inclusion ---


def filled(chinese: str, english: str) -> str:
    """A Chinese page with the code and the front matter of the English one.

    Raises
    ------
    ValueError
        The two have different numbers of blocks.
    """
    blocks = [block for section in sections(english) for block in section.blocks]
    wanted = chinese.count(SAME)
    if wanted != len(blocks):
        msg = f"the English page has {len(blocks)} blocks of code, and the Chinese one {wanted}"
        raise ValueError(msg)
    head, *rest = chinese.split(SAME)
    front = FRONT.match(english)
    text = head + "".join(block + tail for block, tail in zip(blocks, rest, strict=True))
    return (front[0] if front else "") + text


# --- comparison ---


def differences(page: str) -> Iterator[str]:
    """In what a translation differs from the English page as it is now: a sentence each."""
    where = chinese_of(page).relative_to(ROOT).as_posix()
    if not english_of(page).exists():
        yield f"{where} translates a page that is not there any more; move it, or remove it"
        return
    english = sections(english_of(page).read_text(encoding="utf-8"))
    chinese = sections(chinese_of(page).read_text(encoding="utf-8"))
    levels = [section.level for section in english], [section.level for section in chinese]
    if levels[0] != levels[1]:
        yield f"{where}: headings of levels {levels[1]}, where the English page has {levels[0]}"
        return
    for ours, theirs in zip(chinese, english, strict=True):
        for what in compared(ours, theirs, raw=page == "README.md"):
            yield f"{where}, “{ours.title}” (“{theirs.title}”): {what}"


def compared(ours: Section, theirs: Section, *, raw: bool) -> Iterator[str]:
    """In what a section differs from the English one, but for words.

    Parameters
    ----------
    raw : bool
        Whether the blocks are code, as in the README.
    """
    if raw:
        mine, others = map(_commands, ours.blocks), map(_commands, theirs.blocks)
        if list(mine) != list(others):
            yield "the code is not that of the English section"
        if _links(ours) != _links(theirs):
            yield f"other links: {_links(ours) ^ _links(theirs)}"
    elif ours.blocks != [SAME] * len(theirs.blocks):
        yield f"{len(theirs.blocks)} blocks of code in English; each must be {{same}}"
    formulas = _displayed(ours.text), _displayed(theirs.text)
    if formulas[0] != formulas[1]:
        other = [a for a in formulas[0] if a not in formulas[1]]
        yield f"other displayed formulas: {other or 'another number or order of them'}"
    for name, of in (("formulas", _inline), ("code", _spans), ("numbers", _numbers)):
        extra, missing = of(ours) - of(theirs), of(theirs) - of(ours)
        if extra or missing:
            yield f"{name}: {sorted(extra)} not in English, {sorted(missing)} not in Chinese"


def _commands(block: str) -> list[str]:
    """The lines of a block; if it has no language, without descriptions after two spaces."""
    lines = block.splitlines()
    if lines[0] == "```":
        return [re.split(r"(?<=\S) {2,}", line)[0] for line in lines]
    return lines


def _links(section: Section) -> set[str]:
    found = {link.partition("#")[0] for link in LINK.findall(section.text)}
    return found - {"README.md", "README.zh-CN.md", ""}


def _displayed(text: str) -> list[str]:
    bare = (WORDS.sub("", found) for found in DISPLAYED.findall(text))
    return ["".join(formula.split()).rstrip(".,") for formula in bare]


def _inline(section: Section) -> set[str]:
    text = SPAN.sub("", DISPLAYED.sub("", section.text))
    return {"".join(WORDS.sub("", found).split()) for found in INLINE.findall(text)}


def _spans(section: Section) -> set[str]:
    return {" ".join(span.split()) for span in SPAN.findall(section.text.replace("```", ""))}


def _numbers(section: Section) -> Counter[str]:
    text = INLINE.sub("", SPAN.sub("", DISPLAYED.sub("", section.text.replace("```", ""))))
    return Counter(NUMBER.findall(re.sub(r"\]\([^)]*\)", "]", text)))


# --- what was translated when ---


def recorded() -> dict[str, dict[str, str]]:
    """For each page the hashes of its sections as they were translated."""
    return tomllib.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else {}


def hashes(page: str) -> dict[str, str]:
    """The hashes of a page's sections now; a title that occurs again gets a number."""
    found: dict[str, str] = {}
    for section in sections(english_of(page).read_text(encoding="utf-8")):
        name, count = section.title, 1
        while name in found:
            count += 1
            name = f"{section.title} ({count})"
        found[name] = section.hash
    return found


def outdated(page: str) -> list[str]:
    """A sentence for each section that has changed since it was translated."""
    if not english_of(page).exists():
        return []
    now, then = hashes(page), recorded().get(page, {})
    english = english_of(page).relative_to(ROOT).as_posix()
    chinese = chinese_of(page).relative_to(ROOT).as_posix()
    return [
        f"{english}, “{title}”, has changed since it was translated: put the change into "
        f"{chinese}, then `python docs/translations.py --renew {page}`"
        for title in [*now, *(title for title in then if title not in now)]
        if now.get(title) != then.get(title)
    ]


def renew(names: list[str]) -> None:
    """Record that pages are translated as they are now."""
    known = recorded() | {page: hashes(page) for page in names}
    lines = ["# Hashes of the English sections, as they were translated; written by", "#"]
    lines.append("#     python docs/translations.py --renew PAGE")
    for page in sorted(known):
        if page not in pages():
            continue
        lines += ["", f"[{json.dumps(page)}]"]
        for title, value in known[page].items():
            lines.append(f'{json.dumps(title, ensure_ascii=False)} = "{value}"')
    RECORD.write_text("\n".join(lines) + "\n", encoding="utf-8")
