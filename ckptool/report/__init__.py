"""One self-contained HTML page on what a command found: `--html FILE`.

One module for each command turns its result into a Page, which is data; `html` turns a Page into
text by what is in `template`. The page asks nothing of the network, and its own script is the
only one that may run.
"""
