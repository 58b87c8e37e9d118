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
from dataclasses import dataclass
from pathlib import Path

from quantdraft.engines.process import Server, free_port
from quantdraft.engines.vllm.client import Client, Completion, Request
from quantdraft.engines.vllm.environment import Environment
from quantdraft.engines.vllm.replies import Counters
from quantdraft.engines.vllm.server import server_variables, started
from quantdraft.engines.vllm.settings import Serving, server_command
from quantdraft.errors import EngineError

ARMS = ("autoregressive", "baseline", "candidate", "control")
NUM_WARM_UP = 2

Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Answer:
    """What one server said to one prompt, and what it counted."""

    prompt: int  # position among the requests
    completion: Completion
    counters: Counters
    load: int = 0  # which start of the arm's server


@dataclass(frozen=True, slots=True)
class Answers:
    """Every answer by arm, in the order of asking; or by arm why its server could not answer."""

    by_arm: dict[str, list[Answer]]
    undefined: dict[str, str]


def ask_in_turns(
    clients: Mapping[str, Client],
    requests: Sequence[Request],
    progress: Progress,
    load: int = 0,
    num_loads: int = 1,
) -> dict[str, list[Answer]]:
    """Ask servers that are all up, prompt by prompt; see `turn` for the order of the arms."""
    answers: dict[str, list[Answer]] = {arm: [] for arm in clients}
    for index, request in enumerate(requests):
        for arm in turn(list(clients), index, load, num_loads):
            answers[arm].append(Answer(index, *clients[arm].ask(request), load))
            progress(1)
    return answers


def warm_up(client: Client, requests: Sequence[Request]) -> None:
    """Answers that count for nothing; EngineError where the server cannot give them."""
    for request in requests[:NUM_WARM_UP]:
        client.complete(request)


def visits(arms: Sequence[str], prompt: int) -> list[str]:
    """The order of the arms on one prompt: forward from another one each time, then back."""
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

    environment: Environment
    serving: Serving
    drafts: Mapping[str, Path | None]  # arm -> its draft; None: the target alone
    run_dir: Path

    @contextlib.contextmanager
    def start(self, arm: str) -> Iterator[Server]:
        """One arm's server, started and not yet healthy."""
        port = free_port()
        command = server_command(self.environment, self.serving, self.drafts[arm], port)
        variables = server_variables(self.environment.prefix, self.environment.device_type)
        log = self.run_dir / f"vllm-{arm}.log"
        with started(command, port, log, variables) as server:
            yield server

    def ask_together(
        self, requests: Sequence[Request], num_loads: int, progress: Progress
    ) -> Answers:
        """All servers up at once, asked in turns; nobody is asked where one does not come up."""
        answers: dict[str, list[Answer]] = {arm: [] for arm in self.drafts}
        for load in range(num_loads):
            with contextlib.ExitStack() as stack:
                servers = {arm: stack.enter_context(self.start(arm)) for arm in self.drafts}
                failed = {arm: why for arm, s in servers.items() if (why := not_ready(s, requests))}
                if failed:
                    return Answers({}, failed)
                clients = {arm: Client(server.url) for arm, server in servers.items()}
                with blamed_on(servers):
                    found = ask_in_turns(clients, requests, progress, load, num_loads)
                for arm, new in found.items():
                    answers[arm] += new
        return Answers(answers, {})

    def ask_one_by_one(
        self, requests: Sequence[Request], num_loads: int, progress: Progress
    ) -> Answers:
        """One server at a time, in one order of the arms in one load and in reverse in the next."""
        answers: dict[str, list[Answer]] = {arm: [] for arm in self.drafts}
        times_asked = num_visits(num_loads) // num_loads
        for load in range(num_loads):
            for arm in [*self.drafts][:: -1 if load % 2 else 1]:
                with self.start(arm) as server:
                    reason = not_ready(server, requests)
                    if reason is not None:
                        return Answers({}, {arm: reason})
                    client = Client(server.url)
                    with blamed_on({arm: server}):
                        for index, request in [*enumerate(requests)] * times_asked:
                            answers[arm].append(Answer(index, *client.ask(request), load))
                            progress(1)
        return Answers(answers, {})


def not_ready(server: Server, requests: Sequence[Request]) -> str | None:
    """Why a server cannot answer, in its own words; None once it has answered the warm-up."""
    try:
        server.wait_until_healthy()
        with blamed_on({"its first request": server}):
            warm_up(Client(server.url), requests)
    except EngineError as error:
        return str(error)
    return None


@contextlib.contextmanager
def blamed_on(servers: Mapping[str, Server]) -> Iterator[None]:
    """An error while asking is told with the last words of the server that died of it."""
    try:
        yield
    except EngineError as error:
        for arm, server in servers.items():
            if server.has_failed():
                raise EngineError(f"vLLM failed while serving {arm}: {server.reason()}") from error
        raise
