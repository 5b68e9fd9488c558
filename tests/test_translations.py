"""The Chinese pages follow the English ones: words by hashes, code and numbers by comparison."""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [
    "README.md",
    *(
        path.relative_to(DOCS / "zh").as_posix()
        for path in sorted((DOCS / "zh").rglob("*.md"))
        if path.name not in ("glossary.md", "about.md")
    ),
]


@pytest.fixture
def translations(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(DOCS))
    from _site import translations

    yield translations
    for name in [name for name in sys.modules if name.partition(".")[0] == "_site"]:
        del sys.modules[name]


@pytest.mark.parametrize("page", PAGES)
def test_the_translation_is_that_of_the_page_as_it_is(translations: ModuleType, page: str) -> None:
    found = [*translations.outdated(page), *translations.differences(page)]
    assert not found, "\n".join(found)


def test_start_learn_and_the_questions_are_translated(translations: ModuleType) -> None:
    wanted = [*DOCS.glob("learn/*.md"), *DOCS.glob("start/*.md")]
    names = {path.relative_to(DOCS).as_posix() for path in wanted} - {"start/about.md"}
    names |= {"README.md", "index.md", "faq.md"}
    assert sorted(translations.pages()) == sorted(PAGES)
    missing = sorted(names - {*PAGES, *translations.NOT_TRANSLATED})
    assert not missing, "translate a new page, or add it to NOT_TRANSLATED"


ENGLISH = """---
kernelspec: python3
---
# Title

Some words, 12 of them, and $x$.

## Second

```{code-cell}
f(1)
```

$$y = x^2 \\quad\\text{if } x > 0.$$

More `code` here.
"""
CHINESE = """# 标题

一些文字，共 12 个，还有 $x$。

## 第二节

```{same}
```

$$y = x^2 \\quad\\text{若 } x > 0,$$

这里还有 `code`。
"""


@pytest.fixture
def pair(translations: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A page and its translation, just renewed."""
    english, chinese = tmp_path / "page.md", tmp_path / "zh" / "page.md"
    chinese.parent.mkdir()
    english.write_text(ENGLISH, encoding="utf-8")
    chinese.write_text(CHINESE, encoding="utf-8")
    monkeypatch.setattr(translations, "ROOT", tmp_path)
    monkeypatch.setattr(translations, "RECORD", tmp_path / "translated.toml")
    monkeypatch.setattr(translations, "english_of", lambda page: english)
    monkeypatch.setattr(translations, "chinese_of", lambda page: chinese)
    monkeypatch.setattr(translations, "pages", lambda: ["page.md"])
    translations.renew(["page.md"])
    return translations


def test_a_translation_without_faults_is_silent(pair: ModuleType) -> None:
    assert not [*pair.outdated("page.md"), *pair.differences("page.md")]


@pytest.mark.parametrize(
    ("old", "new", "section"),
    [("Some", "Few", "Title"), ("More", "Much", "Second"), ("## Second", "## Third", "Third")],
)
def test_changed_english_words_are_found_until_renewed(
    pair: ModuleType, old: str, new: str, section: str
) -> None:
    pair.english_of("page.md").write_text(ENGLISH.replace(old, new), encoding="utf-8")
    found = pair.outdated("page.md")
    assert "python docs/translations.py --renew page.md" in found[0]
    assert f"page.md, “{section}”, has changed since it was translated" in found[0]
    assert "zh/page.md" in found[0]
    pair.renew(["page.md"])
    assert not pair.outdated("page.md")


@pytest.mark.parametrize(
    ("old", "new"), [("words, 12 of", "words,\n12 of"), ("f(1)", "f(2)"), ("python3", "python4")]
)
def test_lines_and_code_are_no_words(pair: ModuleType, old: str, new: str) -> None:
    pair.english_of("page.md").write_text(ENGLISH.replace(old, new), encoding="utf-8")
    assert not [*pair.outdated("page.md"), *pair.differences("page.md")]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("12", "13", "numbers: ['13'] not in English, ['12'] not in Chinese"),
        ("$x$", "$z$", "formulas: ['z'] not in English, ['x'] not in Chinese"),
        ("`code`", "`cod`", "code: ['cod'] not in English, ['code'] not in Chinese"),
        ("x^2", "x^3", "other displayed formulas"),
        ("```{same}\n```", "", "1 blocks of code in English; each must be {same}"),
        ("```{same}\n```", "```python\nf(1)\n```", "each must be {same}"),
        ("## 第二节", "### 第二节", "headings of levels [1, 3], where the English page has [1, 2]"),
    ],
)
def test_a_translation_that_says_something_else_is_found(
    pair: ModuleType, old: str, new: str, said: str
) -> None:
    pair.chinese_of("page.md").write_text(CHINESE.replace(old, new), encoding="utf-8")
    assert said in "\n".join(pair.differences("page.md"))


def test_a_translation_of_a_page_that_has_gone_is_found(pair: ModuleType) -> None:
    pair.english_of("page.md").unlink()
    assert not pair.outdated("page.md")
    assert "translates a page that is not there any more" in "".join(pair.differences("page.md"))


def test_a_readme_has_the_same_code_links_and_commands(translations: ModuleType) -> None:
    def said(ours: str, theirs: str) -> str:
        one, other = (translations.sections(f"# A\n{text}")[0] for text in (ours, theirs))
        return "\n".join(translations.compared(one, other, raw=True))

    assert not said("```\nxbp info   本机\n```", "```\nxbp info   this machine\n```")
    assert "the code" in said("```\nxbp inf   本机\n```", "```\nxbp info   this machine\n```")
    assert "the code" in said("```python\na  = 1\n```", "```python\na  = 2\n```")
    assert "other links" in said("[此处](b.md)", "[here](a.md)")
    assert not said("[中](README.md)", "[E](README.zh-CN.md)")


def test_a_chinese_page_gets_the_code_of_the_english_one(translations: ModuleType) -> None:
    made = translations.filled(CHINESE, ENGLISH)
    assert made.startswith("---\nkernelspec: python3\n---\n# 标题")
    assert "```{code-cell}\nf(1)\n```\n" in made
    with pytest.raises(ValueError, match="has 1 blocks of code, and the Chinese one 0"):
        translations.filled(CHINESE.replace("{same}", "{code}"), ENGLISH)


def test_links_between_the_languages_are_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(DOCS))
    from _site.links import relinked

    page = DOCS / "zh" / "learn" / "chain.md"
    text = "[a](../../guides/data.md#b) [b](systems.md) [c](../../../README.zh-CN.md)"
    assert relinked(text, page, page) == (
        "[a](../../guides/data.html#b){.external} [b](systems.md) [c](../start/about.md)"
    )
    about = DOCS / "start" / "about.md"
    assert relinked("[中](README.zh-CN.md)", ROOT / "README.md", about) == (
        "[中](../zh/start/about.html){.external}"
    )


def test_the_network_on_a_page_has_all_its_words_in_chinese() -> None:
    words = json.loads((DOCS / "zh" / "browser.json").read_text(encoding="utf-8"))
    html = (DOCS / "_site" / "browser.html").read_text(encoding="utf-8")
    script = (DOCS / "_static" / "browser.js").read_text(encoding="utf-8")
    shown = re.findall(r"(?:>|aria-label=\")\s*([^<>\"]*[A-Za-z][^<>\"]*?)\s*[\"<]", html)
    said = re.findall(r'\btold\(((?:\s*\+?\s*"[^"]*")+)', script)
    sentences = {"".join(re.findall(r'"([^"]*)"', each)) for each in said}
    assert len(sentences) > 8
    assert not re.findall(r'\bsay\((?!told\()["`]|textContent = ["`]', script)
    assert sorted(words) == sorted({*shown, *sentences})
    for english, chinese in words.items():
        assert sorted(re.findall(r"\{\d\}", english)) == sorted(re.findall(r"\{\d\}", chinese))
