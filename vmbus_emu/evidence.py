"""What code a process has loaded, by its own word: for ``vmbus-emu audit``. Loaded only when that asks.

Small, because every process of a machine sends it: paths of files, relative to where modules are searched.
"""

from __future__ import annotations

import os
import sys
from collections import defaultdict


def loaded_files() -> dict[str, list[str]]:
    """Folder of ``sys.path`` -> the files below it that modules of this process came from; "" has those below none.

    Modules without a file, built into the interpreter, are not in it.
    """
    folders = sorted({entry.rstrip(os.sep) for entry in sys.path if entry}, key=len, reverse=True)
    found: defaultdict[str, list[str]] = defaultdict(list)
    for path in {path for module in list(sys.modules.values()) if (path := getattr(module, "__file__", None))}:
        folder = next((folder for folder in folders if path.startswith(folder + os.sep)), "")
        found[folder].append(path[len(folder) + 1 :] if folder else path)
    return {folder: sorted(paths) for folder, paths in found.items()}
