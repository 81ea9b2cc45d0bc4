"""Support the import name of ado 1.x: with ado 2.x installed, ``orchestrator.x.y`` is ``ado.x.y``.

Where ado 1.x is installed its own package of this name comes first, and this module is never imported.
"""

from autoconf.experiments.ado_compat import alias

alias(__name__, "ado")
