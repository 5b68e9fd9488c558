"""Formulas as MathML, which browsers display by themselves, without a script or a font."""

from __future__ import annotations

import re
from html import unescape
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert

ALIGN = re.compile(r'<mtd columnalign="(left|right|center)"')


def mathml(latex: str, display: str) -> str:
    """LaTeX → MathML; alignment as a style, since browsers follow no `columnalign`.

    Raises
    ------
    ValueError
        A command or a `&` is left over, which `latex2mathml` passes on without a word.
    """
    if display == "block" and ("&" in latex or r"\\" in latex) and r"\begin" not in latex:
        latex = rf"\begin{{align*}}{latex}\end{{align*}}"
    made: str = convert(latex.replace(r"\top", r"\mathrm{T}"), display=display)
    left_over = re.findall(r"<m[io]>(\\[^<]*|&)</m[io]>", unescape(made).replace("<mi>\\</mi>", ""))
    if left_over:
        msg = f"not understood in a formula: {', '.join(left_over)}"
        raise ValueError(msg)
    return ALIGN.sub(r'<mtd style="text-align: \1; padding: 0.2em 0.1em"', made)


def _inline(self: Any, node: nodes.math) -> None:
    self.body.append(_of(self, node, "inline"))
    raise nodes.SkipNode


def _block(self: Any, node: nodes.math_block) -> None:
    self.body.append(f'<div class="formula">{_of(self, node, "block")}</div>\n')
    raise nodes.SkipNode


def _of(self: Any, node: nodes.Element, display: str) -> str:
    from sphinx.util import logging

    try:
        return mathml(node.astext(), display)
    except Exception as error:
        logging.getLogger(__name__).warning("%s", error, location=node)
        return ""


def setup(app: Any) -> dict[str, bool]:
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
