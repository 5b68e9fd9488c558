"""The site in two languages: Chinese pages with the code of the English ones, links both ways."""

from __future__ import annotations

import re
from gettext import NullTranslations
from html import escape
from pathlib import Path
from posixpath import relpath
from typing import Any, ClassVar

from sphinx.errors import ExtensionError
from sphinx.search.zh import SearchChinese

from _site.translations import english_of, filled, pages

DOCS = Path(__file__).parents[1]


def is_chinese(app: Any) -> bool:
    return bool(app.config.language == "zh_CN")


def fill(app: Any, name: str, source: list[str]) -> None:
    """Include the code of the English page."""
    page = f"{name}.md"
    if page not in pages():
        return
    app.env.note_dependency(str(english_of(page)))
    try:
        source[0] = filled(source[0], english_of(page).read_text(encoding="utf-8"))
    except ValueError as error:
        msg = f"docs/zh/{page}: {error}"
        raise ExtensionError(msg) from None


def link(app: Any, name: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Begin a page with a link to the other language."""
    chinese = is_chinese(app)
    if doctree is None or not (DOCS / ("." if chinese else "zh") / f"{name}.md").exists():
        return
    here = f"zh/{name}.html" if chinese else f"{name}.html"
    there = f"{name}.html" if chinese else f"zh/{name}.html"
    language, label = ("en", "English") if chinese else ("zh-CN", "中文")
    url = escape(relpath(there, here.rpartition("/")[0] or "."))
    attributes = f'rel="alternate" hreflang="{language}" href="{url}"'
    context["metatags"] = f"{context.get('metatags', '')}\n<link {attributes}>"
    anchor = f'<a lang="{language}" {attributes}>{label}</a>'
    context["body"] = f'<p class="language">{anchor}</p>\n{context["body"]}'


class Pairs(SearchChinese):
    """Search by each two neighbouring characters: no dictionary, and none to be installed."""

    language_name = "English"  # of the stemmer, which is for the words between

    js_splitter_code = r"""
function splitQuery(query) {
  const found = query.match(/[\u4e00-\u9fff]+|[A-Za-z0-9_]+/g) || [];
  return found.flatMap((run) => {
    if (!/^[\u4e00-\u9fff]{3,}$/.test(run)) return [run];
    return Array.from({length: run.length - 1}, (_, k) => run.slice(k, k + 2));
  });
}
"""

    def split(self, input: str) -> list[str]:  # noqa: A002
        runs = re.findall(r"[\u4e00-\u9fff]+", input)
        latin = self.latin1_letters.findall(input)
        self.latin_terms.update(latin)
        return [run[k : k + 2] for run in runs for k in range(len(run) - 1)] + latin


class Furo(NullTranslations):
    """Words of the theme that Sphinx does not translate."""

    WORDS: ClassVar = {
        "On this page": "本页内容",
        "Back to top": "回到页首",
        "Skip to content": "跳到正文",
        "Home": "首页",
        "Next": "下一页",
        "Previous": "上一页",
        "Error": "错误",
    }

    def gettext(self, message: str) -> str:
        return self.WORDS.get(message.strip(), message)


def prepare(app: Any) -> None:
    if is_chinese(app):
        app.connect("source-read", fill, priority=400)
        app.translator.add_fallback(Furo())


def setup(app: Any) -> dict[str, bool]:
    app.add_search_language(Pairs)
    app.connect("builder-inited", prepare)
    app.connect("html-page-context", link)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
