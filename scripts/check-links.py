"""Check that every relative link in the documentation leads to a file.

Prints one line for each that does not, and then exits with 1.
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")


def main() -> int:
    """Check all documents; return the exit status."""
    broken = [
        f"{document.relative_to(ROOT)}:{number}: no such file: {target}"
        for document in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"))
        for number, line in enumerate(document.read_text(encoding="utf-8").splitlines(), start=1)
        for target in LINK.findall(line)
        if "://" not in target and not (document.parent / target).exists()
    ]
    print("\n".join(broken), end="\n" if broken else "")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
