"""How Sphinx reads the staged sources; `build.py` stages them and calls it."""

from pathlib import Path

from citations import link_docstrings

import tdecomp

project = "tdecomp"
author = "the tdecomp authors"
project_copyright = author
version = release = tdecomp.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["demo/*", "site/*", "notebooks/*.py"]
html_theme = "furo"
html_title = f"tdecomp {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_js_files = ["table.js"]
html_show_copyright = False
html_copy_source = False
html_theme_options = {"navigation_with_keys": True}

nb_execution_mode = "off"  # the notebooks are committed with what they show
nb_merge_streams = True
nb_ipywidgets_js = {}  # no notebook has widgets: nothing is loaded from elsewhere
myst_heading_anchors = 4
myst_enable_extensions = ["attrs_inline", "colon_fence"]

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # shapes and types are said in the docstrings
autodoc_preserve_defaults = True
napoleon_google_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
default_role = "code"
smartquotes = False  # --rank has two hyphens
suppress_warnings = ["ref.python"]  # an attribute that several classes have is a link to none


def setup(app):
    """Citations in docstrings are links, as they are on the other pages."""
    app.connect(
        "autodoc-process-docstring", link_docstrings(Path(__file__).with_name("references.bib"))
    )
