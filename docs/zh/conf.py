"""Sphinx's configuration of the Chinese pages: that of the English ones, in another language."""

import sys
from pathlib import Path

DOCS = Path(__file__).parents[1]
sys.path.insert(0, str(DOCS))
from conf import *  # noqa: E402, F403

language = "zh_CN"
extensions = ["myst_nb", "_site.mathml", "_site.code", "_site.languages", "_site.links"]
extensions += ["_site.browser"]
exclude_patterns: list[str] = []
default_role = None
html_static_path = ["../_static"]
nb_code_prompt_show = "显示输出"
nb_code_prompt_hide = "隐藏输出"
