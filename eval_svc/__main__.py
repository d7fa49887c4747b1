"""`python -m eval_svc`: serve evaluations, and take up those that an earlier stop left unfinished."""

from __future__ import annotations

import logging
import sys
from typing import Any

from chatmill.config import Config
from chatmill.eval import v1
from chatmill.runtime.server import Add, Service, main
from eval_svc.clients import DatasetSource, MeshAgents, Peers, RegistryScores
from eval_svc.evaluations import Evaluations
from eval_svc.execution import Tools
from eval_svc.keys import Keys
from eval_svc.people import guide
from eval_svc.people.desk import AgentModels, Desk
from eval_svc.people.servicer import HumanEvalServicer
from eval_svc.semantic import local_embedder
from eval_svc.servicer import EvalServicer
from eval_svc.store import Store
from eval_svc.suite import SuiteLibrary

LATENCY_TURNS = 10
"""Replies of each side that are timed one at a time after a run that does not say."""

KEYS = "keys"
"""Folder in the home folder that key files must lie in where `eval.key_root` is not set."""

log = logging.getLogger(__name__)


async def build(config: Config) -> Service:
    """The service as the configuration wants it."""
    settings, peers = config.eval, Peers(config)
    store = Store(settings.database or config.home / "eval.sqlite")
    tools = Tools(
        agents=MeshAgents(peers, Keys(settings.key_root or config.home / KEYS, settings.trusted_hosts)),
        scores=RegistryScores(peers),
        embedder=local_embedder(),
        concurrency=settings.concurrency,
        max_runs=settings.max_runs,
        latency_turns=LATENCY_TURNS,
    )
    evaluations = Evaluations(store, SuiteLibrary(settings.suite_roots), DatasetSource(peers), tools)

    async def ready() -> None:
        if resumed := await evaluations.resume():
            log.info("evaluations taken up again: %d", resumed)

    async def close() -> None:
        await evaluations.close()
        await peers.close()
        store.close()

    def guided() -> guide.Guide:
        left = config.left_card
        return guide.load(settings.tasks, settings.agent_card or (left if left.is_file() else None))

    desk = Desk(store, guided, AgentModels(tools.agents))
    servicers: list[tuple[Add, Any]] = [
        (v1.add_EvalServiceServicer_to_server, EvalServicer(evaluations)),
        (v1.add_HumanEvalServiceServicer_to_server, HumanEvalServicer(desk)),
    ]
    return Service("eval", servicers, ready=ready, drain=evaluations.close, close=close)


if __name__ == "__main__":
    sys.exit(main("eval", build))
