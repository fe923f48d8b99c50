"""Hooks of `mkdocs.yml`: pages that lie outside `docs/`, and links that mean something else there.

README.md and its neighbours stay where GitHub and readers of the code look for them. In the site
they are pages like the others, so their links are rewritten; a link to a file of the code becomes
its path as text, because the site holds no code.
"""

from __future__ import annotations

import logging
import os.path
import re
from pathlib import Path, PurePosixPath
from typing import Final

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

log = logging.getLogger("mkdocs.site")
ROOT: Final = Path(__file__).resolve().parents[1]
# Page of the site -> file of the repository.
OUTSIDE: Final = {
    "index.md": "README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
    "security.md": "SECURITY.md",
    "local-cluster.md": "tests/cluster/README.md",
    "test-support.md": "tests/support/README.md",
}
LINK: Final = re.compile(r"(?<!\!)\[([^\]]+)\]\(([^)#:\s]+)(#[^)\s]*)?\)")
IMAGE: Final = re.compile(r"(!\[[^\]]*\]\()([^):]+)\)")
# GitHub draws this; here the picture made from the same table stands for it.
STATES: Final = re.compile(r"```mermaid\nstateDiagram-v2.*?```", re.DOTALL)
# What a browser would fetch from elsewhere. The theme does so for mermaid diagrams.
FETCHED: Final = re.compile(
    r'<(?:script|img|link|iframe)\b[^>]*\b(?:src|href)="https?://|class="mermaid"'
)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for page, path in OUTSIDE.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    path = PurePosixPath(OUTSIDE.get(page.file.src_uri, f"docs/{page.file.src_uri}"))
    uri = page.file.src_uri

    def link(match: re.Match[str]) -> str:
        target = site_page(path, match[2])
        if target is None:
            named = repository_path(path, match[2])
            if not (ROOT / named).exists():
                log.warning("%s links to %s, which does not exist", path, named)
            return f"{match[1]} (`{named}`)"
        return f"[{match[1]}]({relative(target, uri)}{match[3] or ''})"

    def image(match: re.Match[str]) -> str:
        target = repository_path(path, match[2]).removeprefix("docs/")
        return f"{match[1]}{relative(target, uri)})"

    markdown = STATES.sub("![The states of a resource](pictures/states.svg)", markdown)
    return IMAGE.sub(image, LINK.sub(link, markdown))


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    for match in FETCHED.finditer(output):
        log.warning("%s makes the browser load from elsewhere: %s", page.file.src_uri, match[0])
    return output


def site_page(path: PurePosixPath, target: str) -> str | None:
    """The page that a link of the file `path` leads to; None where the site has none."""
    meant = repository_path(path, target)
    for page, outside in OUTSIDE.items():
        if meant == outside:
            return page
    if meant.rstrip("/") == "docs/decisions":
        return "decisions/0001-operator-folder.md"
    return meant.removeprefix("docs/") if meant.startswith("docs/") else None


def repository_path(path: PurePosixPath, target: str) -> str:
    return os.path.normpath(str(path.parent / target))


def relative(target: str, page: str) -> str:
    return os.path.relpath(target, os.path.dirname(page) or ".")
