"""Operators that this package adds to ado."""
