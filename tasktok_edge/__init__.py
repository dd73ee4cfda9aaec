"""Task-driven image restoration (TaskTok) on the edge: train, shrink, export, run and verify.

Importing this package is light: no torch, no engine. What runs on a device lives in `tasktok_edge.runtimes`.
"""

from pathlib import Path as _Path

__version__ = "0.1.0"

# In a source tree export/, quantize/, runtimes/ and apps/ stand beside this folder and are its subpackages; an installed
# wheel holds them inside. pyproject.toml is there only in a source tree.
_root = _Path(__file__).resolve().parent.parent
if (_root / "pyproject.toml").is_file() and str(_root) not in __path__:
    __path__.append(str(_root))
