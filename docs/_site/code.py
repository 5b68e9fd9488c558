"""The directive ``code-of``: a function's or class's code, as it stands in a file of xbp.

    ```{code-of} xbp/primitives/product.py affine
    ```

Docstrings are left out, since the page around it says the same at greater length.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.directives.code import container_wrapper
from sphinx.util.docutils import SphinxDirective

from _site.sources import code_of

ROOT = Path(__file__).parents[2]


class CodeOf(SphinxDirective):
    required_arguments = 2

    def run(self) -> list[nodes.Node]:
        file, name = self.arguments
        path = ROOT / file
        self.env.note_dependency(str(path))
        try:
            code = code_of(path.read_text(encoding="utf-8"), name)
        except (OSError, KeyError):
            raise self.error(f"there is no {name} in {file}") from None
        block = nodes.literal_block(code, code, language="python")
        chinese = self.config.language == "zh_CN"
        caption = f"``{file}`` 中的 ``{name}``" if chinese else f"``{name}`` in ``{file}``"
        return [container_wrapper(self, block, caption)]


def setup(app: Any) -> dict[str, bool]:
    app.add_directive("code-of", CodeOf)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
