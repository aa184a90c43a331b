"""A scheduler with the names and the habits of vLLM's (0.26 to 0.33) that the plugin reads, and no more.

As there: the output tells the context before the step, the requests are advanced when it is returned, and what a
model makes is taken in later, perhaps after the next step was scheduled.
"""

from dataclasses import dataclass, field
from types import SimpleNamespace


@dataclass
class Request:
    """One sequence."""

    request_id: str
    num_prompt_tokens: int
    num_tokens: int
    num_computed_tokens: int = 0
    num_preemptions: int = 0
    drafts: int = 0
    placeholders: int = 0
    waiting: bool = True
    seen: bool = False


@dataclass
class New:
    req_id: str
    num_computed_tokens: int


@dataclass
class Cached:
    req_ids: list[str] = field(default_factory=list)
    resumed_req_ids: set[str] = field(default_factory=set)
    num_computed_tokens: list[int] = field(default_factory=list)


@dataclass
class Output:
    scheduled_new_reqs: list[New]
    scheduled_cached_reqs: Cached
    num_scheduled_tokens: dict[str, int]
    finished_req_ids: set[str]


class SchedulerBase:
    """Schedules every request in each step, as many tokens as are missing, within a budget of tokens."""

    resumed_are_new = False
    """vLLM's second model runner gets resumed requests as new ones."""
    ahead = False
    """Asynchronous scheduling: a step may be scheduled before the token it needs is there."""

    def __init__(self, budget: int = 1_000_000, rank: int = 0) -> None:
        self.vllm_config = SimpleNamespace(
            parallel_config=SimpleNamespace(data_parallel_index=rank, data_parallel_rank=0)
        )
        self.requests: dict[str, Request] = {}
        self.finished: set[str] = set()
        self.budget = budget
        self.updated: list[Output] = []

    def add(self, name: str, prompt: int, *, cached: int = 0) -> Request:
        """A request whose first `cached` tokens are found in the prefix cache."""
        self.requests[name] = request = Request(name, prompt, prompt, num_computed_tokens=cached)
        return request

    def preempt(self, name: str) -> None:
        """Throws its computed tokens away and lets it wait."""
        request = self.requests[name]
        request.num_computed_tokens = request.placeholders = 0
        request.num_preemptions += 1
        request.waiting = True

    def finish(self, name: str) -> None:
        """It has ended, or was aborted; the next step tells."""
        del self.requests[name]
        self.finished.add(name)

    def schedule(self, throttle_prefills: bool = False) -> Output:
        left, tokens, new, cached = self.budget, dict[str, int](), list[New](), Cached()
        for name, request in self.requests.items():
            missing = request.num_tokens + request.placeholders + request.drafts - request.num_computed_tokens
            count = min(missing, left)
            if count <= 0:
                continue
            left -= count
            tokens[name] = count
            if not request.seen or (request.waiting and self.resumed_are_new):
                new.append(New(name, request.num_computed_tokens))
            else:
                cached.req_ids.append(name)
                cached.num_computed_tokens.append(request.num_computed_tokens)
                if request.waiting:
                    cached.resumed_req_ids.add(name)
            request.waiting, request.seen = False, True
        output = Output(new, cached, tokens, self.finished)
        self.finished = set()
        for name, count in tokens.items():
            request = self.requests[name]
            request.num_computed_tokens += count
            if self.ahead and request.num_computed_tokens >= request.num_tokens:
                request.placeholders += 1
        return output

    def update_from_output(self, scheduler_output: Output, model_runner_output: object = None) -> str:
        """Every complete sequence gets its next token; model_runner_output: drafts rejected, by name."""
        self.updated.append(scheduler_output)
        rejected = model_runner_output if isinstance(model_runner_output, dict) else {}
        for name in scheduler_output.num_scheduled_tokens:
            request = self.requests.get(name)
            if request is None or request.waiting:
                continue
            if request.placeholders:
                request.placeholders -= 1
                request.num_tokens += 1
            elif request.num_computed_tokens >= request.num_tokens:
                request.num_computed_tokens -= rejected.get(name, 0)
                request.num_tokens = request.num_computed_tokens + 1
        return "taken in"
