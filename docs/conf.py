"""How Sphinx builds the site; `build_site.py` calls it."""

import importlib.metadata

project = "distributary"
release = importlib.metadata.version(project)
author = "the authors of distributary"
project_copyright = author

extensions = ["myst_parser"]
nitpicky = True
highlight_language = "none"
suppress_warnings = ["misc.highlighting_failure"]  # examples leave things out with `…`

# Links to headings are made as code hosts make them, and those that lead nowhere are told.
myst_heading_anchors = 4

html_theme = "furo"
html_title = f"{project} {release}"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_show_copyright = False
html_show_sphinx = False
html_copy_source = False
pygments_style = "friendly"
pygments_dark_style = "github-dark"
