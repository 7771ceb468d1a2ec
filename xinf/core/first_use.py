"""Names of a package that are loaded when they are first used, so that who needs one of them pays for one.

    __getattr__ = names_on_first_use(__name__, {"supervisor": ("Supervisor", "serve"), "up": ("Up", "Voice")})

Type checkers see the same names imported below `if TYPE_CHECKING`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module


def names_on_first_use(package: str, modules: Mapping[str, tuple[str, ...]]) -> Callable[[str], object]:
    """Make the `__getattr__` of a package that finds names in its modules and keeps what it found.

    The function raises AttributeError for a name that is in none of them.
    """
    home = {name: module for module, names in modules.items() for name in names}

    def find(name: str) -> object:
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value: object = getattr(import_module(f"{package}.{home[name]}"), name)
        setattr(sys.modules[package], name, value)
        return value

    return find
