"""Sphinx's configuration; `python docs/build.py` builds the site."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(Path(__file__).parent)]

import xbp  # noqa: E402

project = "xbp"
author = "The xbp developers"
copyright = author  # noqa: A001
version = release = xbp.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.viewcode",
    "numpydoc",
    "_site.mathml",
    "_site.code",
    "_site.reference",
    "_site.languages",
    "_site.links",
    "_site.browser",
]
exclude_patterns = ["build", "_site", "zh"]
default_role = "py:obj"

# --- pages ---

myst_enable_extensions = ["dollarmath", "deflist", "attrs_inline", "colon_fence"]
myst_heading_anchors = 4
nb_execution_mode = "cache"  # emptied by each build; Chinese pages show what English ones printed
nb_execution_cache_path = str(ROOT / "docs" / "build" / "cells")
nb_execution_timeout = 600
nb_execution_raise_on_error = False  # a warning, so that all failures are seen
nb_execution_show_tb = True
nb_merge_streams = True

# --- reference ---

autodoc_typehints = "none"
autodoc_preserve_defaults = True
autodoc_inherit_docstrings = False
numpydoc_show_class_members = False
numpydoc_attributes_as_param_list = True
toc_object_entries = False

# --- appearance: system fonts, formulas as MathML, nothing from elsewhere ---

html_theme = "furo"
html_title = f"xbp {release}"
html_math_renderer = "mathml"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
