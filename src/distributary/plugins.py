"""Loads transform modules from folders, files, importable modules and entry points into a registry."""

import importlib
import os
import pkgutil
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.abc import InspectLoader
from importlib.machinery import ModuleSpec
from importlib.metadata import EntryPoint
from importlib.metadata import entry_points as installed_entry_points
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from distributary.derive import registry
from distributary.derive.collect import (
    collect,
    has_marks,
    hidden,
    mark_of,
    reachable,
    rollups_beside,
    trigger_mark_of,
)
from distributary.derive.faults import faults
from distributary.derive.fingerprint import Module
from distributary.derive.found import Found, Marked
from distributary.derive.registry import Registry, build, rollups_over
from distributary.derive.transform import Function, Transform
from distributary.derive.trigger import Trigger
from distributary.derive.uses import misuses
from distributary.errors import ConfigurationError, Fault
from distributary.folders import PRIVATE, private_package

#: The entry-point group by which installed packages advertise transform modules.
GROUP = "distributary.transformers"

#: The folder of the default configuration. Its name is never taken for a module: PyPI has one of that name.
DEFAULT_FOLDER = "transformers"

#: Where faults of the list of entries are placed.
KEY = "worker.transformers"

_WRITE_ONE = "Write a transform module, see the README."


def load(entries: Sequence[str | Path], only: Sequence[str] = (), *, entry_points: bool = True) -> Registry:
    """Load transform modules and give the registry of their transforms, or of those in `only`.

    An entry is a folder, a `.py` file, or the name of an importable module or package. Raises
    `ConfigurationError` with every fault of every module; then none of the modules that were loaded stays.
    Modules are executed: what they do when they are imported is done.
    """
    loading = _Loading()
    try:
        for entry in entries:
            loading.add(entry)
        for advertised in _advertised() if entry_points else ():
            loading.add_advertised(advertised)
        return loading.registry().only(only)
    except BaseException:
        loading.forget()
        raise


def load_module(path: str | Path) -> ModuleType:
    """Load one `.py` file as `load` does, and give the module; raises `ConfigurationError` with its faults."""
    file = Path(path)
    if file.suffix != ".py" or not file.is_file():
        problem = f"there is no such `.py` file (looked for at {file.absolute()})."
        raise ConfigurationError([Fault(str(path), problem, "Name one transform module.")])
    loading = _Loading()
    try:
        loading.add(file)
        loading.check()
    except BaseException:
        loading.forget()
        raise
    (module,) = loading.modules.values()
    return module


def transform_of(function: Function) -> Transform:
    """Give the transform that a marked function is, as the registry has it; raises `TypeError` for another one.

    Of a function that does not stand at the top level of a module whose source can be had (in a test, at a
    prompt) every derived collection that it can reach counts as named, and its fingerprint is empty.
    """
    mark = mark_of(function)
    if mark is None:
        raise TypeError(f'{function!r} is no transform: mark it with @transform("collection")')
    found = _marked_in(getattr(function, "__module__", ""))
    marked = next((marked for marked in found if marked.function is function), None)
    if marked is not None:
        return _grouped(registry.transform_of(marked))
    names = frozenset(collection.name for collection in reachable(function))
    return _grouped(
        Transform(mark.name, mark.source, function, "", names, getattr(function, "__module__", ""))
    )


def _grouped(transform: Transform) -> Transform:
    """Give a transform with the rollups of its module."""
    beside = {rollup.name: rollup for rollup in rollups_beside(transform.function)}
    return replace(transform, rollups=rollups_over(beside.values(), transform.collections))


def trigger_of(function: Callable[[Any], Any]) -> Trigger:
    """Do what `transform_of` does for a trigger."""
    mark = trigger_mark_of(function)
    if mark is None:
        raise TypeError(f'{function!r} is no trigger: mark it with @trigger("collection")')
    module = getattr(function, "__module__", "")
    triggers = [marked for found in _found_in(module) for marked in found.triggers]
    marked = next((marked for marked in triggers if marked.function is function), None)
    if marked is not None:
        return registry.trigger_of(marked)
    names = frozenset(collection.name for collection in reachable(function))
    options = (mark.operations, mark.match, mark.project)
    return Trigger(mark.name, mark.source, function, "", names, module, *options)


def _marked_in(name: str) -> Iterator[Marked]:
    """Give the transforms in a loaded module, as far as its source is known."""
    for found in _found_in(name):
        yield from found.transforms


def _found_in(name: str) -> list[Found]:
    """Give what is marked in a loaded module, as far as its source is known."""
    private = PRIVATE.match(name)
    root = private[0].rstrip(".") if private else name.partition(".")[0]
    resolve = cache(lambda name: _module(name, frozenset({root})))
    module = resolve(name) if name in sys.modules else None
    return collect([module], (), resolve) if module else []


def _advertised() -> list[EntryPoint]:
    return sorted(installed_entry_points(group=GROUP), key=lambda entry: (entry.name, entry.value))


@dataclass
class _Loading:
    """One call of `load`: what was collected, what is wrong, and what there was before."""

    modules: dict[str, ModuleType] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    folders: dict[Path, str] = field(default_factory=dict)
    roots: set[str] = field(default_factory=set)
    before: frozenset[str] = field(default_factory=lambda: frozenset(sys.modules))

    def add(self, entry: str | Path) -> None:
        """Load what an entry of the configuration names."""
        path = Path(entry).expanduser()
        if not _is_path(entry):
            self._add_importable(str(entry), KEY)
        elif path.is_dir():
            self._add_folder(path)
        elif path.suffix == ".py" and path.is_file():
            self._add_file(path)
        else:
            self.faults.append(_no_such_path(path))

    def add_advertised(self, entry: EntryPoint) -> None:
        """Load the module that an installed package advertises."""
        package = f" of {entry.dist.name}" if entry.dist else ""
        self._add_importable(entry.module, f"entry point {entry.name!r}{package}")

    def registry(self) -> Registry:
        """Build the registry; raises `ConfigurationError` with the faults of all modules and its own."""
        found = self.check()
        if not any(module.transforms or module.triggers for module in found):
            raise ConfigurationError(
                [Fault(KEY, "there is no transform in any module, and no trigger.", _WRITE_ONE)]
            )
        return build(found)

    def check(self) -> list[Found]:
        """Give what was collected; raises `ConfigurationError` with the faults of all modules."""
        found = self._found()
        if wrong := [*self.faults, *faults(found)]:
            raise ConfigurationError(list(dict.fromkeys(wrong)))
        return found

    def _found(self) -> list[Found]:
        roots = frozenset(self.roots)
        resolve = cache(lambda name: _module(name, roots))
        modules = [module for name in self.modules if (module := resolve(name))]
        helpers = [name for name in list(sys.modules) if _is_within(name, roots) and name not in self.modules]
        for name, loaded in self.modules.items():
            if resolve(name) is None and has_marks(vars(loaded).values()):
                self.faults.append(_no_source(name))
        for module in modules:
            self.faults.extend(hidden(module))
        beside = [module for name in helpers if (module := resolve(name))]
        self.faults.extend(misuses([*modules, *beside]))
        return collect(modules, beside, resolve)

    def forget(self) -> None:
        """Take the modules of this call out of `sys.modules`, except those of other packages."""
        for name in set(sys.modules) - self.before:
            if _is_within(name, self.roots):
                del sys.modules[name]

    def _add_folder(self, folder: Path) -> None:
        try:
            files = sorted(path for path in folder.iterdir() if path.suffix == ".py")
        except OSError as error:
            cure = "Let the user that runs this read it."
            self.faults.append(Fault(KEY, f"the folder {str(folder)!r} cannot be read: {error}.", cure))
            return
        files = [path for path in files if path.name[0] not in "._"]
        if not files:
            problem = f"the folder {str(folder)!r} holds no transform module."
            self.faults.append(Fault(KEY, problem, _WRITE_ONE))
        for path in files:
            self._add_file(path)

    def _add_file(self, path: Path) -> None:
        if "." in path.stem:
            problem = "a module's file name has no dot but that of `.py`."
            self.faults.append(Fault(f"{shown(path)}:1", problem, "Rename the file."))
            return
        package = self._package_of(path.parent)
        self._import(f"{package}.{path.stem}", path.absolute(), f"{shown(path)}:1")

    def _package_of(self, folder: Path) -> str:
        key = folder.resolve()
        if key not in self.folders:
            self.folders[key] = private_package(folder.absolute())
            self.roots.add(self.folders[key])
        return self.folders[key]

    def _add_importable(self, name: str, place: str) -> None:
        self.roots.add(name.partition(".")[0])
        module = self._import(name, None, place)
        if module is not None and hasattr(module, "__path__"):
            for part in sorted(pkgutil.iter_modules(module.__path__, f"{name}."), key=lambda part: part.name):
                if not part.name.rpartition(".")[2].startswith("_"):
                    self._add_importable(part.name, place)

    def _import(self, name: str, path: Path | None, place: str) -> ModuleType | None:
        if name in self.modules:
            return None
        try:
            self.modules[name] = importlib.import_module(name)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 - the author's module may raise anything, even SystemExit
            self.faults.append(_import_fault(error, name, path, place))
            return None
        return self.modules[name]


def _is_path(entry: str | Path) -> bool:
    if isinstance(entry, Path) or entry == DEFAULT_FOLDER or entry.endswith(".py"):
        return True
    separators = {"/", os.sep, "~"}
    named = all(part.isidentifier() for part in entry.split("."))
    return not named or any(separator in entry for separator in separators) or Path(entry).exists()


def _no_such_path(path: Path) -> Fault:
    if path.exists():
        return Fault(KEY, f"{str(path)!r} is neither a folder nor a `.py` file.", _WRITE_ONE)
    cure = f"Make the folder (looked for at {path.absolute()}) or correct the key. {_WRITE_ONE}"
    return Fault(KEY, f"there is no folder or file {str(path)!r}.", cure)


def _no_source(name: str) -> Fault:
    problem = f"module {name!r} has transforms but no Python source, which their fingerprints are made of."
    return Fault(KEY, problem, "Install its package with its source.")


def _is_within(name: str, roots: Iterable[str]) -> bool:
    return any(name == root or name.startswith(f"{root}.") for root in roots)


def shown(path: str | Path) -> str:
    """Give a path as a person would write it: relative where it is below the working directory."""
    absolute = Path(path).absolute()
    here = Path.cwd()
    return str(absolute.relative_to(here) if absolute.is_relative_to(here) else absolute)


def _import_fault(error: BaseException, name: str, path: Path | None, place: str) -> Fault:
    if isinstance(error, ModuleNotFoundError) and error.name and f"{name}.".startswith(f"{error.name}."):
        return Fault(
            place,
            f"there is neither a folder nor a module {name!r}.",
            "Install its package in this environment, or name a folder: ./folder.",
        )
    line = _failing_line(error, [path.parent] if path else _locations(name))
    problem = f"{_what(error)}." if line else f"module {name!r} cannot be imported: {_what(error)}."
    return Fault(line or place, problem, _cure(error, path))


def _locations(name: str) -> list[Path]:
    """Give where the top-level package of a module lies, to tell the author's lines from others'."""
    spec = _spec(name.partition(".")[0])
    if spec is None:
        return []
    folders = spec.submodule_search_locations
    return [Path(place) for place in ([spec.origin or ""] if folders is None else folders)]


def _failing_line(error: BaseException, locations: Sequence[Path]) -> str:
    """Give the innermost line of the author's own that the error passed through."""
    lines = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    if isinstance(error, SyntaxError) and error.filename:
        lines.append((error.filename, error.lineno))
    own = [
        (file, line) for file, line in lines if any(Path(file).is_relative_to(place) for place in locations)
    ]
    return f"{shown(own[-1][0])}:{own[-1][1] or 1}" if own else ""


def _what(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return f"sys.exit({error.code!r}) was called"
    message = error.msg if isinstance(error, SyntaxError) else PRIVATE.sub(".", str(error))
    return " ".join(f"{type(error).__name__}: {message}".strip(": ").split())


def _cure(error: BaseException, path: Path | None) -> str:
    if isinstance(error, SystemExit):
        return 'Put what a script does under `if __name__ == "__main__":`.'
    if not isinstance(error, ModuleNotFoundError) or not error.name or PRIVATE.match(error.name):
        return "Correct that line."
    if path and (path.parent / f"{error.name}.py").exists():
        return f"Import a file of the same folder relatively: `from . import {error.name}`."
    return f"Install the package that has {error.name!r}."


def _module(name: str, roots: frozenset[str]) -> Module | None:
    """Give a module with its source if it lies in one of the authors' own packages."""
    if not _is_within(name, roots) or (spec := _spec(name)) is None:
        return None
    source = _source(spec)
    if source is None:
        return None
    values = vars(sys.modules[name]) if name in sys.modules else {}
    return Module(name, spec.parent or "", shown(spec.origin or name), source, values)


def _spec(name: str) -> ModuleSpec | None:
    """Find a module without importing anything, so one whose package is not loaded is not found."""
    parent = name.rpartition(".")[0]
    if parent and parent not in sys.modules:
        return None
    try:
        return find_spec(name)
    except (ImportError, ValueError, AttributeError):
        return None


def _source(spec: ModuleSpec) -> str | None:
    if not isinstance(spec.loader, InspectLoader) or not spec.has_location:
        return None
    try:
        return spec.loader.get_source(spec.name)
    except (ImportError, OSError):
        return None
