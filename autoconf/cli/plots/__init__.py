"""Pictures: bars of memory, and heat maps of answers."""
