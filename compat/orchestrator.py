"""The import name of ado 1.x, for code written for it: under ado 2.x ``orchestrator.x.y`` is ``ado.x.y`` itself.

Where ado 1.x is installed its own package of this name comes first, and this module is never imported.
"""

from autoconf.experiments.ado_compat import alias

alias(__name__, "ado")
