"""What code a process has loaded, by its own word: for ``vmbus-emu audit``. Loaded only when that asks.

Small, because every process of a machine sends it: paths of files, relative to where modules are searched.
"""

from __future__ import annotations

import os
import sys
from collections import defaultdict
from types import ModuleType

from vmbus_emu.hardware import BROUGHT

#: The folders of packages that brought drivers begin with it.
OF_DRIVERS = "drivers:"


def loaded_files() -> dict[str, list[str]]:
    """Folder of ``sys.path`` -> the files below it that modules of this process came from; "" has those below none.

    Modules without a file, built into the interpreter, are not in it. Drivers of other packages have the folder that
    they were found in, which need not be searched any more, behind :data:`OF_DRIVERS`.
    """
    folders = sorted({entry.rstrip(os.sep) for entry in sys.path if entry}, key=len, reverse=True)
    found: defaultdict[str, set[str]] = defaultdict(set)
    for name, module in list(sys.modules.items()):
        path = getattr(module, "__file__", None)
        if not path:
            continue
        if BROUGHT in getattr(sys.modules.get(name.partition(".")[0]), "__dict__", ()):
            folder = _searched(name, module, path)
            key = OF_DRIVERS + folder
        else:
            key = folder = next((folder for folder in folders if path.startswith(folder + os.sep)), "")
        found[key].add(path[len(folder) + 1 :] if folder else path)
    return {folder: sorted(paths) for folder, paths in found.items()}


def _searched(name: str, module: ModuleType, path: str) -> str:
    """The folder in which the top package of a module was found."""
    for _ in range(name.count(".") + 1 + ("__path__" in vars(module))):
        path = os.path.dirname(path)
    return path
