"""Make a release's section in CHANGELOG.md: `hack/changelog.py VERSION [YYYY-MM-DD]`.

What stands under "Unreleased" and the files of `changelog.d/` go into it; the files are deleted.
"""

from __future__ import annotations

import re
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]
KINDS: Final = ("added", "changed", "deprecated", "removed", "fixed", "security")
UNRELEASED: Final = "## Unreleased\n"


def fragments(folder: Path) -> dict[str, list[str]]:
    """Entries by kind. Raises `ValueError` for a file that is named otherwise."""
    found: dict[str, list[str]] = {}
    for path in sorted(folder.glob("*.md")):
        if path.name == "README.md":
            continue
        kind = path.stem.rpartition(".")[2]
        if kind not in KINDS or path.stem == kind:
            raise ValueError(f"{path.name}: must be <topic>.<{'|'.join(KINDS)}>.md")
        entry = path.read_text().strip().removeprefix("- ")
        found.setdefault(kind, []).append("- " + entry.replace("\n", "\n  "))
    return found


def sections(text: str) -> dict[str, list[str]]:
    """The entries of an Unreleased section by kind."""
    found: dict[str, list[str]] = {}
    for title, body in re.findall(r"^### (\w+)\n(.*?)(?=^### |\Z)", text, re.DOTALL | re.MULTILINE):
        found[title.lower()] = [
            part.rstrip() for part in re.split(r"^(?=- )", body.strip(), flags=re.M) if part
        ]
    return found


def released(page: str, version: str, date: str, new: dict[str, list[str]]) -> str:
    """The page with a section for the version, and an empty Unreleased one."""
    head, mark, rest = page.partition(UNRELEASED)
    if not mark:
        raise ValueError("CHANGELOG.md has no Unreleased section")
    body, bar, older = rest.partition("\n## ")
    entries = sections(body)
    for kind, lines in new.items():
        entries.setdefault(kind, []).extend(lines)
    parts = [
        f"### {kind.title()}\n\n" + "\n".join(entries[kind]) for kind in KINDS if kind in entries
    ]
    return f"{head}{mark}\n## {version} - {date}\n\n" + "\n\n".join(parts) + "\n" + bar + older


def main() -> int:
    if len(sys.argv) < 2:
        sys.stderr.write(f"{__doc__}\n")
        return 2
    date = sys.argv[2] if len(sys.argv) > 2 else datetime.now(UTC).date().isoformat()
    page, folder = ROOT / "CHANGELOG.md", ROOT / "changelog.d"
    page.write_text(released(page.read_text(), sys.argv[1], date, fragments(folder)))
    for path in folder.glob("*.md"):
        if path.name != "README.md":
            path.unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main())
