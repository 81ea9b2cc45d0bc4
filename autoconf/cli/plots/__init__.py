"""Draw pictures: bars of memory, and heat maps of answers."""
