"""How often a node is asked, and what is remembered between two questions."""

from __future__ import annotations

import pytest
from exo_operator.controller.polling import FIGURES_EVERY_S, Poller, next_question
from exo_operator.exonode.report import NodeReport
from exo_operator.exonode.snapshot import Answers
from exo_operator.kube.objects import PodView

from ..builders import container, exonode, node_ref, pod_of
from ..fake_kube import FakeNodes

POD = PodView(pod_of(node_ref(exonode())))
SILENT = NodeReport()
FORMED = NodeReport(reachable=True, ring_formed=True)
UNFORMED = NodeReport(reachable=True, ring_formed=False)


class Bench(FakeNodes):
    """A poller with a clock that stands still, and a node that answers what the test says."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.figures: list[bool] = []
        self.poller = Poller(self, clock=lambda: self.now)  # type: ignore[arg-type]

    async def report(self, ip: str, name: str, *, figures: bool = False) -> NodeReport:
        self.figures.append(figures)
        return await super().report(ip, name, figures=figures)

    async def ask(self, report: NodeReport, seconds: float = 0.0) -> Answers:
        self.usual = report
        self.now += seconds
        return await self.poller.ask(POD)


async def test_misses_count_only_after_an_answer_and_end_with_one() -> None:
    bench = Bench()
    assert [(await bench.ask(SILENT)).misses for _ in range(3)] == [0, 0, 0]
    await bench.ask(FORMED)
    assert [(await bench.ask(SILENT)).misses for _ in range(3)] == [1, 2, 3]
    assert (await bench.ask(FORMED)).misses == 0


async def test_the_time_without_a_ring_goes_on_while_the_node_is_silent() -> None:
    bench = Bench()
    assert (await bench.ask(UNFORMED)).unformed_s == 0.0
    assert (await bench.ask(SILENT, seconds=3.0)).unformed_s == 3.0
    assert (await bench.ask(UNFORMED, seconds=4.0)).unformed_s == 7.0
    assert (await bench.ask(FORMED, seconds=1.0)).unformed_s == 0.0


async def test_figures_are_asked_for_now_and_then() -> None:
    bench = Bench()
    for seconds in (0.0, 1.0, FIGURES_EVERY_S):
        await bench.ask(FORMED, seconds)
    assert bench.figures == [True, False, True]


async def test_a_pod_that_does_not_run_is_not_asked() -> None:
    bench = Bench()
    waiting = pod_of(node_ref(exonode()), containerStatuses=container(state={"waiting": {}}))
    assert await bench.poller.ask(PodView(waiting)) == Answers()
    assert await bench.poller.ask(None) == Answers()
    assert bench.figures == []


async def test_a_pod_that_is_gone_is_forgotten() -> None:
    bench = Bench()
    await bench.ask(FORMED)
    bench.poller.forget(POD.uid)
    assert (await bench.ask(SILENT)).misses == 0


@pytest.mark.parametrize(
    ("misses", "is_ready", "nodes", "seconds"),
    [
        (0, True, 1, 2.0),
        (0, True, 1000, 20.0),
        (0, False, 1000, 1.0),
        (1, True, 1, 0.25),
        (2, True, 1, 2.0),
    ],
)
def test_a_node_is_asked_more_often_when_it_is_not_ready_or_missed_once(
    misses: int, is_ready: bool, nodes: int, seconds: float
) -> None:
    assert next_question(Answers(misses=misses), is_ready=is_ready, nodes=nodes) == seconds
