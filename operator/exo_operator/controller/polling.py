"""Asks nodes about themselves: how often, and what is remembered between two questions."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from exo_operator.exonode.node_client import NodeClient
from exo_operator.exonode.report import NodeReport
from exo_operator.exonode.snapshot import Answers
from exo_operator.kube.objects import PodView

# A node that is not Ready is asked often; one that is, seldom enough for many nodes and often
# enough that a fault shows within 5 s. A first miss is followed up at once.
POLL_UNREADY_S = 1.0
POLL_READY_S = 2.0
POLL_DOUBT_S = 0.25
NODES_PER_POLL_SECOND = 50
FIGURES_EVERY_S = 10.0


@dataclass(slots=True)
class PodMemory:
    """What is remembered about a pod. Times are monotonic seconds."""

    # Consecutive questions without an answer, after one that was answered.
    misses: int = 0
    answered: bool = False
    figures_at: float = 0.0
    unformed_since: float | None = None

    def note(self, report: NodeReport, now: float) -> None:
        """Take an answer in, or that there was none."""
        if not report.reachable:
            self.misses += int(self.answered)
            return
        self.answered, self.misses = True, 0
        if report.ring_formed is not False:
            self.unformed_since = None
        elif self.unformed_since is None:
            self.unformed_since = now


class Poller:
    """Asks nodes and remembers their answers. Losing the memory does no harm."""

    def __init__(self, nodes: NodeClient, clock: Callable[[], float] = time.monotonic) -> None:
        self._nodes = nodes
        self._clock = clock
        self._pods: dict[str, PodMemory] = {}

    def forget(self, uid: str) -> None:
        """A pod is gone for good."""
        self._pods.pop(uid, None)

    async def ask(self, pod: PodView | None) -> Answers:
        """What the node in this pod says; nothing if the pod does not run."""
        if pod is None or pod.ip is None or not pod.is_running:
            return Answers()
        memory = self._pods.setdefault(pod.uid, PodMemory())
        now = self._clock()
        wants_figures = now - memory.figures_at > FIGURES_EVERY_S
        report = await self._nodes.report(pod.ip, pod.meta.name, figures=wants_figures)
        if wants_figures:
            memory.figures_at = now
        memory.note(report, now)
        since = memory.unformed_since
        unformed_s = 0.0 if since is None else self._clock() - since
        return Answers(report=report, misses=memory.misses, unformed_s=unformed_s)


def next_question(answers: Answers, *, is_ready: bool, nodes: int) -> float:
    """Seconds until a node is asked again, with this many nodes in all."""
    if answers.misses == 1:
        return POLL_DOUBT_S
    if not is_ready:
        return POLL_UNREADY_S
    return max(POLL_READY_S, nodes / NODES_PER_POLL_SECOND)
