"""What travels between processes. Data only, no logic.

Letters, one legend for the repository: `B` rows, `T` decisions, `L` tokens, `G` group members,
`P` tasks, `V` vocabulary, `H` hidden width. `mask` is bool and True means *train on this*.
Log-probabilities (`logp`) are natural logarithms.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from rlft.seeding import Key

if TYPE_CHECKING:
    import numpy as np
    import torch

    from rlft.sampling.desk import Desk

Prompt = str | tuple[Mapping[str, str], ...]
"""Raw text, or chat messages `({"role": ..., "content": ...}, ...)`."""

Origin = Literal["policy", "demo", "mixed", "expert"]
"""Who chose the actions: the policy being trained, the data set, first the data set and then the
policy (a demonstration's prefix, continued), or another policy."""


@dataclass(frozen=True, slots=True)
class Task:
    """One problem. The policy sees `prompt`; only rewards may read `target` and `info`.

    id: unique within its task set; prompt: raw text or chat messages; target: whatever the reward
    compares with; demos: reference responses as text; info: further columns of the row; dialogues:
    demonstrations of several turns: what the policy writes and what the environment answers, in turn.
    """

    id: str
    prompt: Prompt
    target: Any = None
    demos: tuple[str, ...] = ()
    info: Mapping[str, Any] = field(default_factory=dict)
    dialogues: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class Ticket:
    """The right to collect once: which step, which tasks, which randomness. Immutable.

    spare: further training tasks in an order of the ticket's own, for a collect that needs more than
    `tasks`; as many as asked for, and the same each time.
    """

    index: int
    tasks: tuple[Task, ...]
    key: Key
    spare: Callable[[int], Task] | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Guide:
    """Reference rows of a rollout: the last `num` members of each group are not sampled whole.

    They begin with a share of their task's demonstration, which the policy then continues. shares:
    one a task, in [0, 1]; 1 is the demonstration itself, 0 a plain sample. trained: whether the
    prefix belongs to the response (then its `sample_logp` is NaN) or to the prompt.
    """

    num: int
    shares: tuple[float, ...]
    trained: bool = True


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to sample. `greedy` overrides `temperature`. `stop_ids` end a completion and are kept."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    greedy: bool = False
    min_tokens: int = 0
    stop_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt to complete once. prompt_ids: tokens `[L]`; seed: in `[0, 2**31)`; member: which of
    the members of a population that an engine evaluates together."""

    prompt_ids: tuple[int, ...]
    seed: int
    member: int = 0


@dataclass(frozen=True, slots=True)
class Completion:
    """What an engine returns for one request.

    ids: sampled tokens `[T]`, a final stop token included; logp: float32 `[T]`, log-prob of each
    under the distribution it was drawn from (after temperature); stopped: True if a stop token
    ended it, False if `max_tokens` did; version: int32 `[T]`, the weights that drew each token, if they
    may have changed on the way.
    """

    ids: np.ndarray
    logp: np.ndarray
    stopped: bool
    version: np.ndarray | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """The per-token arrays of one trajectory segment, as they lie in the object store.

    ids: int32 `[L]`, prompt then response, token for token as sampled (never re-tokenised);
    prompt_len: how many of them are the prompt; sample_logp: float32 `[L - prompt_len]`, NaN unless
    the policy chose the tokens; version: int32 `[L - prompt_len]`, the weights that drew each token, -1
    for given ones, or None if one version drew all of them; mask: bool `[L - prompt_len]`, False where
    an environment wrote, or None if it wrote nothing. What is learnt from are the decisions, the tokens
    with True: only `assemble` and who looks at tokens need to know that there are others.
    """

    ids: np.ndarray
    prompt_len: int
    sample_logp: np.ndarray
    version: np.ndarray | None = None
    mask: np.ndarray | None = None

    @property
    def decisions(self) -> slice | np.ndarray:
        """Picks, of an array `[L - prompt_len]`, the tokens that are not the environment's."""
        return slice(None) if self.mask is None else self.mask


@dataclass(frozen=True, slots=True)
class Strip:
    """Steps of one episode of an environment, in order, as they lie in the object store.

    obs: arrays `[T, ...]` by name; action: float32 `[T, A]`; params: float32 `[T, D]`, of the
    distribution that the action was drawn from; logp, value, reward: float32 `[T]`; bootstrap: the value
    of what came after the last step, 0 if the episode terminated there; state: float32 `[H]`, what a
    recurrent policy carried into the first step, `[0]`: nothing; after: the observation after the last
    step; slot: which environment of the run stepped it, -1: none in particular; continues: its episode was
    under way, in the strip before of that slot. Of a demonstration logp, value and params are NaN.
    """

    obs: Mapping[str, np.ndarray]
    action: np.ndarray
    params: np.ndarray
    logp: np.ndarray
    value: np.ndarray
    reward: np.ndarray
    bootstrap: float
    state: np.ndarray | None
    after: Mapping[str, np.ndarray]
    slot: int = -1
    continues: bool = False

    def upto(self, steps: int) -> Strip:
        """Its first steps; what came after the last one stays as it was said."""
        arrays = ("action", "params", "logp", "value", "reward")
        cut = {name: getattr(self, name)[:steps] for name in arrays}
        return replace(self, obs={n: x[:steps] for n, x in self.obs.items()}, **cut)


End = Literal["terminated", "truncated", "cut", "error"]
"""How a stretch of an episode ends: by the environment's own rule, by a limit on steps, because no more
was asked for, or because the environment failed. Only the first leaves nothing to come."""


@dataclass(frozen=True, slots=True)
class Episode:
    """A whole episode as the driver sees it. ret: undiscounted return, from the reset on also for a vine;
    length: steps from the reset on; success: None if the environment does not say; traces: int arrays
    `[length + 1, d]` by name; error: what ended it, if it failed; start: steps before what was recorded
    of it, and ret_before: the return of those, both 0 unless it is a vine; branch: of a vine, the number
    of the rollout state that it left from, else -1; facts: what the environment says of how it went."""

    seed: int
    ret: float
    length: int
    end: End
    success: bool | None = None
    traces: Mapping[str, np.ndarray] = field(default_factory=dict)
    error: str = ""
    start: int = 0
    ret_before: float = 0.0
    branch: int = -1
    facts: Mapping[str, float | str] = field(default_factory=dict)

    @property
    def ret_after(self) -> float:
        """The return from `start` on."""
        return self.ret - self.ret_before


@dataclass(frozen=True, slots=True)
class RowRef:
    """Where a `Row` or `Strip` lies: an object-store reference to a list of them, and the index in it."""

    ref: Any
    index: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What scoring said: a value, an invalid answer with its reason, or an error with its text.

    Only `value` and `invalid` (which carries the configured score) have a `reward`; an error never
    becomes a number. fault: what kind of error: the function `raised` (a wrong answer counts as that),
    ran into its `timeout`, or its process `died`; seconds: what scoring it took; steps: of an answer
    that was judged step by step, `(characters up to the step's end, its reward)` in order; reply: what an
    environment answers, if it was one that was asked.
    """

    kind: Literal["value", "invalid", "error"]
    reward: float | None
    parts: Mapping[str, float] = field(default_factory=dict)
    reason: str = ""
    seconds: float = 0.0
    fault: Literal["", "raised", "timeout", "died"] = ""
    steps: tuple[tuple[int, float], ...] = ()
    reply: str = ""


@dataclass(frozen=True, slots=True)
class Attempt:
    """A trajectory as a reward sees it: its text and facts, no per-token arrays.

    text: what the policy wrote; messages: the whole conversation, the prompt's messages first (a raw
    prompt is one of role `user`) and what the policy wrote as `assistant`; num_tokens: sampled;
    truncated: it was cut off; version: (oldest, newest) weights it was sampled under; seed: what an
    environment that answers back may draw from.
    """

    id: str
    origin: Origin
    text: str
    messages: tuple[Mapping[str, str], ...] = ()
    num_tokens: int = 0
    truncated: bool = False
    version: tuple[int, int] = (0, 0)
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Trajectory:
    """One attempt at a task, as the driver sees it: numbers and text, no per-token arrays.

    version: (oldest, newest) weights it was sampled under; truncated: it hit `max_tokens`, or a limit of
    `turns`; given_tokens: how many of the response's first tokens came from a demonstration; member:
    which member of a population drew it, -1: none, but the policy itself; episode: of an environment, the
    episode that ended here; turns: of several turns, what the policy wrote and what the environment
    answered, in turn; env_tokens: of those answers, which `num_tokens` does not count.
    """

    id: str
    task_id: str
    origin: Origin
    text: str
    prompt_len: int
    num_tokens: int
    version: tuple[int, int]
    truncated: bool
    row: RowRef
    outcome: Outcome | None = None
    given_tokens: int = 0
    member: int = -1
    episode: Episode | None = None
    turns: tuple[str, ...] = ()
    env_tokens: int = 0

    @property
    def length(self) -> int:
        """Tokens of its row: the prompt, what the policy wrote, what an environment answered."""
        return self.prompt_len + self.num_tokens + self.env_tokens

    @property
    def reward(self) -> float | None:
        """The scalar reward, or None if it has not been scored or its reward failed."""
        return self.outcome.reward if self.outcome else None


@dataclass(frozen=True, slots=True)
class Group:
    """Members that share one baseline: here, attempts at the same task."""

    task: Task
    members: tuple[Trajectory, ...]

    @property
    def rewards(self) -> list[float]:
        """Rewards of the members that have one, in order."""
        return [m.reward for m in self.members if m.reward is not None]


@dataclass(frozen=True, slots=True)
class Batch:
    """What a loss sees. All `[B, T]` unless said; T is the number of decisions, right-padded.

    mask: bool; weight: float32, 0 where masked (it holds the aggregation, e.g. 1/length); adv:
    advantage; sample_logp: the engine's, NaN where the policy did not choose; old_logp: the
    learner's at the start of `fit`; ref_logp: the reference policy's, if a term needs it;
    on_policy: bool `[B]`, True for rows with origin `policy`; ret, old_value: a critic's target, and
    what it said at the start of `fit`, if there is a critic; unit: int64 `[B]`, the group of rows that
    were asked to stay together, -1 for a row of padding; kl_point: one number, at least 0, the mean log
    ratio of policy to reference over the rows of advantage 0 of the whole update, nats a response, if a
    term needs it. The learner divides the weighted sum of what a
    loss returns by one global denominator.
    """

    mask: torch.Tensor
    weight: torch.Tensor
    adv: torch.Tensor
    sample_logp: torch.Tensor
    old_logp: torch.Tensor
    on_policy: torch.Tensor
    ref_logp: torch.Tensor | None = None
    ret: torch.Tensor | None = None
    old_value: torch.Tensor | None = None
    unit: torch.Tensor | None = None
    kl_point: torch.Tensor | None = None


@dataclass(frozen=True, slots=True)
class PolicyOut:
    """What the policy says about the actions of a batch: `[B, T]` float32 each, 0 where padded.

    value: what a critic expects from each decision on, in a term of a module that has one.
    score: float32 `[B]`, what a reward model says of each row, prompt and response; None of a policy
    that writes. A reward model writes nothing: its `logp` and `entropy` are 0. behaviour_kl: KL of the
    distribution that each action was drawn from to the policy's, in nats, exact; top: bool, whether the
    action is the policy's likeliest; both of environments only.
    teacher_kl: KL of a teacher's distribution to the policy's, in nats, where a term asks for it.
    """

    logp: torch.Tensor
    entropy: torch.Tensor
    value: torch.Tensor | None = None
    score: torch.Tensor | None = None
    behaviour_kl: torch.Tensor | None = None
    top: torch.Tensor | None = None
    teacher_kl: torch.Tensor | None = None


LossValue = "torch.Tensor | tuple[torch.Tensor, dict[str, torch.Tensor]]"
"""Unreduced `[B, T]`, or `[B]` for a loss of whole rows; optionally with diagnostics `[B, T]` that are
averaged over the mask."""


class LossFn(Protocol):
    """A pure, picklable loss. `needs` names optional batch fields that it reads (`ref_logp`);
    `aggregate` the aggregation that its paper uses, if not `token`."""

    def __call__(self, out: PolicyOut, batch: Batch) -> Any: ...


@dataclass(frozen=True, slots=True)
class Term:
    """One summand of the objective: a loss, its name in the log, its coefficient, and whose it is.

    module: `policy` and `critic` say whose decisions a loss reads; of retention, `buffer` learns from
    states of its own beside the batch, and `weights` is a function of the weights alone.
    """

    name: str
    fn: LossFn
    coef: Any = 1.0
    module: Literal["policy", "critic", "buffer", "weights"] = "policy"

    @property
    def needs(self) -> frozenset[str]:
        return frozenset(getattr(self.fn, "needs", ()))


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor of a weight update: Hugging Face name, shape, engine dtype and content hash."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    hash: str


@dataclass(frozen=True, slots=True)
class WeightUpdate:
    """A description of new weights; the payload is pulled or broadcast, never carried here.

    version: what the receiver holds afterwards; base: what it must hold before (a `full` update
    applies to any base); manifest: what the loader must have been handed; source: transport-private.
    """

    version: int
    base: int
    kind: Literal["full", "lora", "noise"]
    manifest: tuple[TensorSpec, ...]
    source: Any = None


@runtime_checkable
class Engine(Protocol):
    """What a sampler actor drives. Implementations: `sampling/vllm.py`, `sampling/transformers.py`.

    `generate` keeps the order of its requests; with a `desk` it serves it before each token and says
    which version drew which token. `progress` may be read from another thread.
    """

    def generate(
        self, requests: list[Request], sampling: Sampling, desk: Desk | None = None
    ) -> list[Completion]: ...

    def score(self, ids: list[int]) -> np.ndarray:
        """Log-probs `[L-1]` at temperature 1 of `ids[1:]`, each given what precedes it."""
        ...

    def load(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Replaces the weights by `tensors` (Hugging Face names, engine dtype)."""
        ...

    def progress(self) -> tuple[int, int]:
        """(finished, asked for) of the `generate` under way."""
        ...

    def sleep(self) -> None: ...

    def wake(self) -> None: ...


class TaskSet(Protocol):
    """Tasks of one environment. Deterministic: the same index is always the same task."""

    def train(self) -> list[Task] | Any: ...

    def held_out(self) -> list[Task] | Any: ...
