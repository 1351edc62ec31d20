"""One self-contained file out of a plugin's entry module and the modules of the pack that it imports.

In order: `source` reads a module, `pieces` cuts it into top-level statements, `reach` finds those that the
plugin's class needs and scopes names that two modules have, `build` puts them end to end, dependencies first,
below a table of contents. `rules` refuses what cannot be put end to end safely, and what Open WebUI's or the
Pipelines server's loader would mangle. Comments stay, except those on the lines of imports, which are merged
at the top.
"""
