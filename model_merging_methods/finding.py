"""Find methods and masks by name: one in each module of a package."""

import importlib
import pkgutil
from collections.abc import Iterable
from typing import TypeVar

Declared = TypeVar("Declared")


def found(package: str, path: Iterable[str], kind: type[Declared]) -> dict[str, Declared]:
    """The objects of this kind in a package's modules, by their names, which are the modules' names too."""
    modules = [module.name for module in pkgutil.iter_modules(path)]
    return {name: _only(importlib.import_module(f"{package}.{name}"), name, kind) for name in sorted(modules)}


def _only(module: object, name: str, kind: type[Declared]) -> Declared:
    declared = getattr(module, name, None)
    if not isinstance(declared, kind):
        raise TypeError(f"{name}.py: must declare a {kind.__name__} named {name}")
    return declared
