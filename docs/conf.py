"""The site, made with the packages of the extra `docs` by `sphinx-build -W --keep-going -n -c docs . build/site`.

Its source is the root of the checkout, so that the links of pages, which lead somewhere on a code host too, lead to the same places here.
"""

import re
import sys
from importlib.util import find_spec
from pathlib import Path

from docutils import nodes
from docutils.utils.math import MathError, pick_math_environment
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.util import logging

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

project, author, copyright = "fastbptt", "The fastbptt developers", "The fastbptt developers"
version = release = re.search('"(.+)"', (ROOT / "fastbptt" / "_version.py").read_text())[1]

root_doc = "docs/index"
include_patterns = ["docs/**", "benchmarks/RESULTS.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"]
exclude_patterns = [".*", "build", "docs/*.template.md"]
for package in "torch", "jax":
    if find_spec(package) is None:
        exclude_patterns.append(f"docs/api/{package}.rst")  # docstrings are read where they are imported
extensions = ["myst_parser", "numpydoc", "sphinx.ext.autodoc", "sphinx.ext.viewcode"]

myst_enable_extensions = ["dollarmath"]
myst_fence_as_directive = ["math"]
myst_heading_anchors = 4

default_role = "autolink"  # what a docstring has in single backticks is a name
nitpick_ignore_regex = [("py:obj", r"(torch|numpy|jax|lax)\..*")]  # and of other packages, a name alone
add_module_names = False
autodoc_typehints = "none"
autodoc_member_order = "bysource"
numpydoc_show_class_members = False

html_theme = "furo"
html_title = f"fastbptt {version}"
html_extra_path = ["site/index.html"]
html_static_path, html_css_files = ["site/static"], ["formulas.css"]
html_copy_source = html_show_sourcelink = False
html_math_renderer = "mathml"


def formula(translator, node, block):
    """MathML, which browsers read without a script from elsewhere."""
    code = node.astext()
    for unknown, known in ((r"\\mathrel\{(.)\}", r"\1"), (r"\\(big|textstyle)\b", ""), (r"\\dots\b", r"\\ldots")):  # to docutils
        code = re.sub(unknown, known, code)
    if block and "align" in pick_math_environment(code) and r"\begin{" not in code:
        code = rf"\begin{{aligned}}{code}\end{{aligned}}"
    try:
        made = tex2mathml(code, as_block=block)
    except MathError as error:
        logging.getLogger(__name__).warning("formula: %s", error, location=node)
    else:
        translator.body.append(f'<div class="math">{made}</div>\n' if block else made)
    raise nodes.SkipNode


def inline_formula(translator, node):
    formula(translator, node, False)


def displayed_formula(translator, node):
    formula(translator, node, True)


def find_source(app, module):
    """Of a compiled module, the Cython that it is made of, and where its functions stand."""
    path = ROOT.joinpath(*module.split(".")).with_suffix(".pyx")
    if not path.exists():
        return None
    source = path.read_text()
    lines = source.splitlines()
    starts = [(n, match[1]) for n, line in enumerate(lines, 1) if (match := re.match(r"def (\w+)\(", line))]
    end = {n: next((m for m in range(n + 1, len(lines)) if re.match(r"\S", lines[m])), len(lines)) for n, _ in starts}
    return source, {name: ("def", n, end[n]) for n, name in starts}


def setup(app):
    app.add_html_math_renderer("mathml", (inline_formula, None), (displayed_formula, None))
    app.connect("viewcode-find-source", find_source)
