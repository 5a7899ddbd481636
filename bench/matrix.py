"""The blast-radius matrix of the documents: ``python -m bench.matrix [--write]``.

Runs ``vmbus-emu demo isolation``, once per transport that a document shows, and puts its table between the two
markers of each document. Without ``--write`` the tables are only printed. Measure on a machine that is quiet.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = (ROOT / "README.md", ROOT / "docs" / "isolation.md")
#: From one marker to the other; the first one names the transport.
MARKED = re.compile(r"(?P<begin><!-- matrix (?P<transport>\w+) -->\n).*?(?P<end><!-- end of matrix -->)", re.DOTALL)
COMMAND = ("demo", "isolation", "--transport")


def measured(transport: str) -> str:
    """The table of one run, as Markdown. Ends the program if something was lost, or did not come back."""
    with tempfile.TemporaryDirectory(prefix="vme") as folder:
        kept = Path(folder, "matrix.md")
        done = subprocess.run([sys.executable, "-m", "vmbus_emu", *COMMAND, transport, "--markdown", str(kept)])
        if done.returncode:
            raise SystemExit(f"bench.matrix: the run over {transport} ended with status {done.returncode}")
        return kept.read_text()


def filled(document: str, tables: dict[str, str]) -> str:
    """``document`` with its tables replaced, by transport."""
    return MARKED.sub(lambda found: f"{found['begin']}\n{tables[found['transport']]}\n{found['end']}", document)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put the tables into the documents")
    options = parser.parse_args()
    documents = {path: path.read_text() for path in DOCUMENTS}
    transports = {found["transport"]: "" for text in documents.values() for found in MARKED.finditer(text)}
    tables = {transport: measured(transport) for transport in transports}
    for path, text in documents.items() if options.write else ():
        path.write_text(filled(text, tables))


if __name__ == "__main__":
    main()
