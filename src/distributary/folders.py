"""A folder of plain files as a private package, `distributary_transformers.f1`, that is not on `sys.path`.

A file in it may be called like any other module without shadowing it; siblings import each other
relatively. Nothing is cached on disk.
"""

import itertools
import re
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import FileFinder, ModuleSpec, SourceFileLoader
from importlib.util import module_from_spec
from pathlib import Path
from types import CodeType, ModuleType

_NAMESPACE = "distributary_transformers"

#: The part of a module's name that is private.
PRIVATE = re.compile(rf"{_NAMESPACE}\.f\d+\.?")


class _Loader(SourceFileLoader):
    """Compiles from the source each time: a cache on disk goes by whole seconds and may be read-only."""

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)


class _Finder(MetaPathFinder):
    """Finds the modules of private packages; a fresh look at the folder each time."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Give the spec of a module in the folder that is its package's path."""
        if path is None or not fullname.startswith(f"{_NAMESPACE}."):
            return None
        specs = (FileFinder(folder, (_Loader, [".py"])).find_spec(fullname, target) for folder in path)
        return next((spec for spec in specs if spec), None)


_FINDER = _Finder()
_NUMBERS = itertools.count(1)


def private_package(folder: Path) -> str:
    """Make a package whose modules are the files of a folder, and give its name; a new one each time."""
    if _FINDER not in sys.meta_path:
        sys.meta_path.insert(0, _FINDER)
    _make_package(_NAMESPACE, [])
    return _make_package(f"{_NAMESPACE}.f{next(_NUMBERS)}", [str(folder)])


def _make_package(name: str, path: list[str]) -> str:
    spec = ModuleSpec(name, None, is_package=True)
    spec.submodule_search_locations = path
    sys.modules.setdefault(name, module_from_spec(spec))
    return name
