"""The site, made with the packages of the extra `docs` by `sphinx-build -W --keep-going -n -c docs . build/site`.

Its source is the root of the checkout, so that the links of pages, which lead somewhere on a code host too, lead to the same places here.
"""

import sys
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import fastbptt

project, author, copyright = "fastbptt", "The fastbptt developers", "The fastbptt developers"
version = release = fastbptt.__version__

root_doc = "docs/index"
include_patterns = ["docs/**", "benchmarks/RESULTS.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"]
exclude_patterns = [".*", "build", "docs/*.template.md"]
if find_spec("torch") is None:
    exclude_patterns.append("docs/api/torch.rst")  # docstrings are read where they are imported
extensions = ["myst_parser", "numpydoc", "sphinx.ext.autodoc", "sphinx.ext.mathjax", "sphinx.ext.viewcode"]

myst_enable_extensions = ["dollarmath"]
myst_fence_as_directive = ["math"]
myst_heading_anchors = 4

default_role = "autolink"  # what a docstring has in single backticks is a name
nitpick_ignore_regex = [("py:obj", r"(torch|numpy)\..*")]  # and of other packages, a name alone
add_module_names = False
autodoc_typehints = "none"
autodoc_member_order = "bysource"
numpydoc_show_class_members = False

html_theme = "furo"
html_title = f"fastbptt {version}"
html_extra_path = ["site/index.html"]
html_copy_source = html_show_sourcelink = False
