"""The arms, each a server of its own, asked the same prompts in turns, one request at a time.

Every arm's server is started several times, for two starts of one program differ in speed: each
start is a load, in which every prompt is answered once. The arms come in one order in one load and
in the reverse in the next (ABBA), and another arm goes first with every prompt, so that a machine
that slows down slows all arms alike. In a single load every prompt comes twice, forward and back.
Where memory does not hold all servers, they run one after another, and each answers all prompts.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from quantdraft.engines.counters import Counters
from quantdraft.engines.measured import (
    Client,
    Completion,
    Installation,
    MeasuredEngine,
    Request,
    ServerPlan,
    ask,
)
from quantdraft.engines.process import Server
from quantdraft.errors import EngineError

ARMS = ("autoregressive", "baseline", "candidate", "control")
NUM_WARM_UP = 2

Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class ArmAnswer:
    """What one arm's server answered to one prompt, and what it counted."""

    prompt: int  # position among the requests
    completion: Completion
    counters: Counters
    load: int = 0  # which start of the arm's server


@dataclass(frozen=True, slots=True)
class ArmAnswers:
    """Every answer by arm, in the order of asking; or by arm why its server could not answer."""

    by_arm: dict[str, list[ArmAnswer]]
    undefined: dict[str, str]


def ask_in_turns(
    clients: Mapping[str, Client],
    requests: Sequence[Request],
    progress: Progress,
    load: int = 0,
    num_loads: int = 1,
) -> dict[str, list[ArmAnswer]]:
    """Ask servers that are all up, prompt by prompt; see `turn` for the order of the arms."""
    answers: dict[str, list[ArmAnswer]] = {arm: [] for arm in clients}
    for index, request in enumerate(requests):
        for arm in turn(list(clients), index, load, num_loads):
            answers[arm].append(ArmAnswer(index, *ask(clients[arm], request), load))
            progress(1)
    return answers


def warm_up(client: Client, requests: Sequence[Request]) -> list[Completion]:
    """Return answers that count for nothing. Raises EngineError where the server has none."""
    return [client.complete(request) for request in requests[:NUM_WARM_UP]]


def visits(arms: Sequence[str], prompt: int) -> list[str]:
    """Return the order of the arms on one prompt: from another first one each time, and back."""
    if not arms:
        return []
    first = prompt % len(arms)
    forward = [*arms[first:], *arms[:first]]
    return [*forward, *reversed(forward)]


def turn(arms: Sequence[str], prompt: int, load: int, num_loads: int) -> list[str]:
    """Return the order of the arms on one prompt: both ways, or of several loads each its own."""
    both = visits(arms, prompt)
    if num_loads == 1:
        return both
    return both[len(arms) :] if load % 2 else both[: len(arms)]


def num_visits(num_loads: int) -> int:
    """Return how often each arm answers a prompt."""
    return max(2, num_loads)


@dataclass(frozen=True, slots=True)
class Fleet:
    """The servers of one evaluation: how each arm's is started, and where its log goes."""

    engine: MeasuredEngine
    installation: Installation
    plan: ServerPlan
    drafts: Mapping[str, Path | None]  # arm -> what the engine loads; None: the target alone
    run_dir: Path

    def start(self, arm: str) -> AbstractContextManager[Server]:
        """Start one arm's server, not yet healthy."""
        name = self.engine.title.lower().replace(".", "")
        log = self.run_dir / f"{name}-{arm}.log"
        return self.installation.start(self.plan, self.drafts[arm], log)

    def ask_together(
        self, requests: Sequence[Request], num_loads: int, progress: Progress
    ) -> ArmAnswers:
        """Ask all servers in turns; none is asked where one does not come up.

        On a CPU they start at once; on a GPU each when the one before it has answered.
        """
        answers: dict[str, list[ArmAnswer]] = {arm: [] for arm in self.drafts}
        for load in range(num_loads):
            with contextlib.ExitStack() as stack:
                servers: dict[str, Server] = {}
                checked: dict[str, str | None] = {}
                for arm in self.drafts:
                    servers[arm] = stack.enter_context(self.start(arm))
                    if self.installation.device_type != "cpu":
                        # What another server allocates meanwhile on a GPU, vLLM takes for its own.
                        checked[arm] = self.failure(arm, servers[arm], requests)
                for arm in servers.keys() - checked.keys():
                    checked[arm] = self.failure(arm, servers[arm], requests)
                failed = {arm: why for arm, why in checked.items() if why is not None}
                if failed:
                    return ArmAnswers({}, failed)
                clients = {arm: self.engine.client(s.url) for arm, s in servers.items()}
                with blamed_on(servers):
                    found = ask_in_turns(clients, requests, progress, load, num_loads)
                for arm, new in found.items():
                    answers[arm] += new
        return ArmAnswers(answers, {})

    def ask_one_by_one(
        self, requests: Sequence[Request], num_loads: int, progress: Progress
    ) -> ArmAnswers:
        """Ask one server after the other; the next load has the arms in the reverse order."""
        answers: dict[str, list[ArmAnswer]] = {arm: [] for arm in self.drafts}
        times_asked = num_visits(num_loads) // num_loads
        for load in range(num_loads):
            for arm in [*self.drafts][:: -1 if load % 2 else 1]:
                with self.start(arm) as server:
                    reason = self.failure(arm, server, requests)
                    if reason is not None:
                        return ArmAnswers({}, {arm: reason})
                    client = self.engine.client(server.url)
                    with blamed_on({arm: server}):
                        for index, request in [*enumerate(requests)] * times_asked:
                            answers[arm].append(ArmAnswer(index, *ask(client, request), load))
                            progress(1)
        return ArmAnswers(answers, {})

    def failure(self, arm: str, server: Server, requests: Sequence[Request]) -> str | None:
        """Wait for a server and warm it up; return why it cannot answer, or None."""
        try:
            server.wait_until_healthy()
            client = self.engine.client(server.url)
            with blamed_on({"its first request": server}):
                answers = warm_up(client, requests)
                has_round = any(answer.num_decoded > 1 for answer in answers)
                if self.drafts[arm] is not None and has_round and not client.counters().num_drafts:
                    raise EngineError(
                        f"{self.engine.title} serves without the draft: {server.reason()}"
                    )
        except EngineError as error:
            return str(error)
        return None


@contextlib.contextmanager
def blamed_on(servers: Mapping[str, Server]) -> Iterator[None]:
    """Raise an error while asking with the last words of the server that died of it."""
    try:
        yield
    except EngineError as error:
        for arm, server in servers.items():
            if server.has_failed():
                engine, reason = server.format.engine, server.reason()
                raise EngineError(f"{engine} failed while serving {arm}: {reason}") from error
        raise
