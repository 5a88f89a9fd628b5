"""The site's configuration; its pages come from `pages.py`."""

import sys
from pathlib import Path

from docutils.nodes import SkipNode
from latex2mathml.converter import convert

sys.path.insert(0, str(Path(__file__).parents[2]))  # the API is read from lib/models

project = "Non-local and graph attention for image restoration"
copyright = author = "the authors of the study"
extensions = ["myst_nb", "sphinx.ext.autodoc"]
suppress_warnings = ["myst.header"]
autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False
highlight_language = "none"  # docstrings are no code

nb_execution_mode = "off"
nb_merge_streams = True
nb_render_markdown_format = "myst"
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = "Non-local attention: a reference study"
html_static_path = [str(Path(__file__).with_name("static"))]
html_css_files = ["site.css"]
html_favicon = str(Path(__file__).with_name("static") / "favicon.svg")
html_copy_source = html_show_sourcelink = False
html_math_renderer = "mathml"
# A row's page leads back to the list of rows at its top; the list of all pages beside each of fifty is half a megabyte.
html_sidebars = {"rows/*": [f"sidebar/{part}.html" for part in ("brand", "search", "scroll-start", "scroll-end")]}


def _inline(writer, node):
    writer.body.append(convert(node.astext(), display="inline"))
    raise SkipNode


def _block(writer, node):
    writer.body.append(f'<div class="math">{convert(node.astext(), display="block")}</div>')
    raise SkipNode


def _literal(app, what, name, obj, options, lines):
    lines[:] = ["::", "", *(f"   {line}" for line in lines), ""] if any(lines) else lines


def setup(app):
    """Equations as MathML, which every browser draws by itself; docstrings as they are written."""
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    app.connect("autodoc-process-docstring", _literal)
