"""One self-contained file out of a plugin's entry module and the modules of the pack that it imports.

The modules' text is put end to end, dependencies first; nothing in it is renamed or rewritten. What cannot
be put end to end safely is refused, and so is what Open WebUI's or the Pipelines server's loader would mangle
(`rules`). Comments stay, except those on the lines of imports, which are merged at the top.
"""
