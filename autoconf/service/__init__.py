"""Answer queries over HTTP and for agents; needs the extras ``serve`` and ``mcp``, which only this room imports."""
