"""The commands of ``ado-autoconf``."""
