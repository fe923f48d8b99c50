"""Draw the pictures of the documentation from the descriptions below: `hack/pictures.py [--check]`.

Two kinds: a sequence (who sends what to whom, from top to bottom) and a graph (boxes on a grid,
arrows between them). The SVG files in `docs/pictures/` need no JavaScript, so that the site loads
nothing from elsewhere. With `--check` nothing is written, and the exit code is 1 where a file is
stale. The states of a resource come from `exo.lifecycle`'s own table.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Final

from exo.lifecycle.diagram import LABELS
from exo.lifecycle.states import TRANSITIONS, ResourceState

FOLDER: Final = Path(__file__).resolve().parents[1] / "docs" / "pictures"
INK, SOFT, LINE, BOX, PAPER = "#1f2937", "#475569", "#64748b", "#e8eefc", "#ffffff"
LETTER: Final = 6.4  # mean width of a character of 12 px

# -- the descriptions ------------------------------------------------------------------------------

# (from, to, what travels); from == to: what happens there; to == "": a line across all.
PROMPT: Final = (
    ("client", "entry node", "POST /v1/chat/completions"),
    ("entry node", "entry node", "check, tokenize, wait for a plan in force"),
    ("entry node", "stage 1", "Open: tokens, sampling parameters, epoch"),
    ("stage 1", "stage 2", "Open"),
    ("stage 2", "stage 3", "Open"),
    ("stage 1", "stage 1", "admit, read the prompt in chunks"),
    ("stage 1", "stage 2", "Forward: hidden states"),
    ("stage 2", "stage 3", "Forward"),
    ("stage 3", "stage 3", "sample"),
    ("stage 3", "entry node", "Token"),
    ("stage 3", "stage 1", "Token: the input of the next step"),
    ("entry node", "client", "a chunk of the stream"),
    ("", "", "the same round for each further token"),
    ("entry node", "stage 1", "Close, sent to each stage: free the KV cache"),
)

# name: (column, row, label)
MANIFEST: Final = {
    "manifest": (0, 0, "ExoNode\nmanifest"),
    "server": (1, 0, "Kubernetes API\nschema, CEL"),
    "operator": (2, 0, "operator\nplan: spec + snapshot → actions"),
    "pod": (3, 0, "Pod, Services,\nNetworkPolicy"),
    "health": (2, 1, "HealthMonitor\nevery part's own check"),
    "api": (1, 2, "API server"),
    "frontend": (2, 2, "Frontend\ntokenizer, sequence"),
    "stages": (3, 2, "stages of the ring\nlayers, KV cache"),
    "client": (0, 2, "client"),
}
MANIFEST_ARROWS: Final = (
    ("manifest", "server", "kubectl apply"),
    ("server", "operator", "watch"),
    ("operator", "pod", "apply"),
    ("health", "pod", "probes"),
    ("health", "server", "conditions"),
    ("client", "api", "prompt"),
    ("api", "frontend", "tokens"),
    ("frontend", "stages", "Open"),
    ("stages", "frontend", "Token"),
    ("api", "client", "answer"),
)

ROLLOUT: Final = {
    "view": (0, 0, "membership view\nnewest offer of each node"),
    "plan": (1, 0, "plan\npure: the same on each node"),
    "hold": (2, 0, "hold layers\nnext to the old ones if they fit"),
    "adopted": (2, 1, "adopted\nmy offer names the epoch"),
    "force": (1, 1, "in force\nnew sequences open here"),
    "retired": (0, 1, "retired\nlayers are given back"),
}
ROLLOUT_ARROWS: Final = (
    ("view", "plan", "a change"),
    ("plan", "hold", "another epoch"),
    ("hold", "adopted", "loaded"),
    ("adopted", "force", "by all stages"),
    ("force", "retired", "newer plan, idle"),
)

STATES: Final = {
    "UNINITIALIZED": (0, 0),
    "INITIALIZING": (1, 0),
    "READY": (2, 0),
    "DEGRADED": (3, 0),
    "ERROR": (3, 1),
    "CLOSING": (1, 2),
    "CLOSED": (0, 2),
}

# -- drawing ---------------------------------------------------------------------------------------


def text(x: float, y: float, words: str, *, size: int = 12, color: str = INK) -> str:
    return (
        f'<text x="{x:g}" y="{y:g}" font-size="{size}" fill="{color}"'
        f' text-anchor="middle">{escape(words)}</text>'
    )


def page(width: float, height: float, parts: Sequence[str], title: str) -> str:
    arrow = (
        '<defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8"'
        f' markerHeight="8" orient="auto"><path d="M0 0L8 4L0 8z" fill="{LINE}"/></marker></defs>'
    )
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}"'
        f' width="{width:g}" height="{height:g}" font-family="system-ui, sans-serif" role="img">'
    )
    background = f'<rect width="{width:g}" height="{height:g}" rx="8" fill="{PAPER}"/>'
    lines = [head, f"<title>{escape(title)}</title>", arrow, background, *parts, "</svg>"]
    return "\n".join(lines) + "\n"


def arrow(x1: float, y1: float, x2: float, y2: float) -> str:
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{LINE}"'
        ' stroke-width="1.4" marker-end="url(#arrow)"/>'
    )


def box(x: float, y: float, width: float, height: float, label: str) -> list[str]:
    """`x`, `y`: its middle. The first line of the label is its name."""
    name, *rest = label.split("\n")
    parts = [
        f'<rect x="{x - width / 2:g}" y="{y - height / 2:g}" width="{width:g}"'
        f' height="{height:g}" rx="6" fill="{BOX}" stroke="{LINE}"/>',
        text(x, y + (4 if not rest else -3), name, size=13),
    ]
    return parts + [text(x, y + 14, line, size=11, color=SOFT) for line in rest]


def sequence(title: str, steps: Sequence[tuple[str, str, str]]) -> str:
    actors = list(dict.fromkeys(name for step in steps for name in step[:2] if name))
    gap, top, step_height = 190.0, 60.0, 34.0
    at = {name: 100 + gap * index for index, name in enumerate(actors)}
    height = top + step_height * (len(steps) + 1)
    width = 200 + gap * (len(actors) - 1)
    parts: list[str] = []
    for name, x in at.items():
        parts.append(
            f'<line x1="{x:g}" y1="45" x2="{x:g}" y2="{height - 14:g}" stroke="#cbd5e1"'
            ' stroke-dasharray="4 4"/>'
        )
        parts += box(x, 28, 120, 30, name)
    for index, (sender, receiver, words) in enumerate(steps):
        y = top + step_height * (index + 1)
        if not sender:
            middle = (at[actors[0]] + at[actors[-1]]) / 2
            parts.append(note(middle, y, words))
        elif sender == receiver:
            parts.append(note(at[sender], y, words))
        else:
            parts += message(at[sender], at[receiver], y, words)
    return page(width, height, parts, title)


def note(x: float, y: float, words: str) -> str:
    width = LETTER * len(words) + 16
    left = max(6.0, x - width / 2)
    frame = (
        f'<rect x="{left:g}" y="{y - 16:g}" width="{width:g}" height="22" rx="4"'
        f' fill="#f1f5f9" stroke="#cbd5e1"/>'
    )
    return frame + text(left + width / 2, y - 1, words, color=SOFT)


def message(start: float, end: float, y: float, words: str) -> list[str]:
    middle, width = (start + end) / 2, LETTER * len(words) + 8
    behind = (
        f'<rect x="{middle - width / 2:g}" y="{y - 20:g}" width="{width:g}" height="15"'
        f' fill="{PAPER}"/>'
    )
    return [arrow(start, y, end, y), behind, text(middle, y - 8, words)]


@dataclass(frozen=True, slots=True)
class Grid:
    """Where the boxes of a graph lie: `column`, `row` are distances of their middles."""

    column: float
    row: float
    width: float
    height: float

    def middle(self, place: tuple[int, int]) -> tuple[float, float]:
        return 20 + self.width / 2 + self.column * place[0], (
            24 + self.height / 2 + self.row * place[1]
        )


def graph(
    title: str,
    boxes: Mapping[str, tuple[int, int, str]],
    arrows: Sequence[tuple[str, str, str]],
    grid: Grid,
) -> str:
    lines: list[str] = []
    words: list[str] = []
    pairs = {(one, two) for one, two, _ in arrows}
    for one, two, label in arrows:
        line, *label_parts = connect(
            grid, boxes[one][:2], boxes[two][:2], label, returns=(two, one) in pairs
        )
        lines.append(line)
        words += label_parts
    parts = lines + words
    for column, row, label in boxes.values():
        parts += box(*grid.middle((column, row)), grid.width, grid.height, label)
    columns, rows = max(b[0] for b in boxes.values()), max(b[1] for b in boxes.values())
    width = 40 + grid.width + grid.column * columns
    return page(width, 48 + grid.height + grid.row * rows, parts, title)


def connect(
    grid: Grid, one: tuple[int, int], two: tuple[int, int], words: str, *, returns: bool
) -> list[str]:
    """The arrow from border to border, then its words. `returns`: another goes the other way."""
    (x1, y1), (x2, y2) = grid.middle(one), grid.middle(two)
    length = ((x2 - x1) ** 2 + (y2 - y1) ** 2) ** 0.5
    across, down = (x2 - x1) / length, (y2 - y1) / length
    shift = 9.0 if returns else 0.0  # to its right, off the other one
    x1, x2, y1, y2 = x1 - down * shift, x2 - down * shift, y1 + across * shift, y2 + across * shift
    inside = min(
        grid.width / 2 / abs(across) if across else length,
        grid.height / 2 / abs(down) if down else length,
    )
    begin = (x1 + across * inside, y1 + down * inside)
    end = (x2 - across * (inside + 2), y2 - down * (inside + 2))
    share = 0.4 if returns and down else 0.5
    at = (begin[0] + share * (end[0] - begin[0]), begin[1] + share * (end[1] - begin[1]))
    lines = words.split("\n")
    if down:
        return [arrow(*begin, *end), *on_line(at, lines)]
    # Words of a level arrow stand above it, or below where the other one's stand above.
    above = at[1] - 6.0 - 13 * (len(lines) - 1)
    top = at[1] + 16.0 if shift * across > 0 else above
    labels = [label(at[0], top + 13 * index, line) for index, line in enumerate(lines)]
    return [arrow(*begin, *end), *labels]


def label(x: float, y: float, words: str) -> str:
    return text(round(x, 1), round(y, 1), words, size=11, color=SOFT)


def on_line(at: tuple[float, float], lines: Sequence[str]) -> list[str]:
    """Words on a slanted or upright arrow, on paper of their own."""
    parts: list[str] = []
    for index, line in enumerate(lines):
        y, width = at[1] + 4 + 13 * index, LETTER * len(line)
        parts.append(
            f'<rect x="{at[0] - width / 2:.1f}" y="{y - 11:.1f}" width="{width:.1f}"'
            f' height="14" fill="{PAPER}"/>'
        )
        parts.append(label(at[0], y, line))
    return parts


def states() -> str:
    boxes = {name: (*place, name) for name, place in STATES.items()}
    arrows = [
        (old.name, new.name, LABELS[old, new].replace(", ", ",\n"))
        for old in ResourceState
        for new in ResourceState
        if new in TRANSITIONS[old]
    ]
    return graph("States of a resource", boxes, arrows, Grid(260, 120, 120, 34))


def files() -> dict[str, str]:
    return {
        "prompt.svg": sequence("How a prompt travels a ring of three stages", PROMPT),
        "manifest.svg": graph(
            "From manifest to answer", MANIFEST, MANIFEST_ARROWS, Grid(285, 92, 195, 50)
        ),
        "rollout.svg": graph(
            "From a changed view to a plan in force",
            ROLLOUT,
            ROLLOUT_ARROWS,
            Grid(330, 110, 200, 50),
        ),
        "states.svg": states(),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; 1 where one is stale")
    check = parser.parse_args().check
    stale = []
    for name, content in files().items():
        path = FOLDER / name
        if path.exists() and path.read_text() == content:
            continue
        stale.append(name)
        if not check:
            FOLDER.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
    if check and stale:
        sys.stderr.write(f"stale: {', '.join(stale)} in docs/pictures; run `make generate`\n")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
