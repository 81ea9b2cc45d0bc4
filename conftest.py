"""What is collected: without the extra ``[build]`` its modules cannot be imported, and their examples not run."""

from importlib.util import find_spec

collect_ignore_glob = [] if find_spec("torch") else ["autoconf/build/*.py"]
