"""Packages whose names load when first used, so that importing one costs nothing."""

import sys
from collections.abc import Mapping
from importlib import import_module
from types import ModuleType
from typing import Any

from hornbook.errors import need


def load_lazily(
    package: str, homes: Mapping[str, str], needs: Mapping[str, str] | None = None
) -> None:
    """Makes names of a package load from its modules at first use.

    Args:
        package: The package's `__name__`.
        homes: Name -> module of the package that defines it; empty where the name is a module's.
        needs: Optional dependencies to check before the first load: module -> extra.
    """

    class Package(ModuleType):
        def __getattr__(self, name: str) -> Any:
            if name not in homes:
                raise AttributeError(f"module {package!r} has no attribute {name!r}")
            for module, extra in (needs or {}).items():
                need(module, extra)
            home = import_module(f"{package}.{homes[name] or name}")
            value = getattr(home, name) if homes[name] else home
            super().__setattr__(name, value)
            return value

        def __setattr__(self, name: str, value: Any) -> None:
            # Importing a module binds its name here: a function of the same name goes first.
            if not (homes.get(name) and isinstance(value, ModuleType)):
                super().__setattr__(name, value)

        def __dir__(self) -> list[str]:
            return sorted({*super().__dir__(), *homes})

    sys.modules[package].__class__ = Package
