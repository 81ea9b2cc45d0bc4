"""The commands of ``ado-autoconf``, one module for each kind."""
