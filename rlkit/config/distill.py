"""A job that makes a dataset for distillation: who answers, what is left out, what is chosen."""

from __future__ import annotations

from dataclasses import dataclass

from rewards.language import SCRIPTS
from rlkit.checks import number, one_of, whole
from rlkit.config.groups import MAX_TIMEOUT_S
from rlkit.config.runs import RunConfig
from rlkit.config.stages import SamplingConfig
from rlkit.errors import UserError

ORDERS = ("shortest", "readable")
"""What comes first among the correct answers to a question: the fewest tokens, or the most readable (`readability`)."""
MAX_CONCURRENCY = 4096
"""A thread waits for each request."""


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """Who answers: the checkpoint of `model.path` on our engines, or a server that speaks OpenAI's protocol.

    A key for the server is read from the environment, OPENAI_API_KEY, and written nowhere.
    """

    url: str
    """As http://host:8000/v1; "" takes our engines."""
    model: str
    """What the server calls the model."""
    concurrency: int
    """How many requests are on their way at a time."""
    timeout: float
    """How many seconds one answer may take."""
    retries: int
    """How often a request that failed is sent again, after longer and longer pauses."""

    def __post_init__(self) -> None:
        """Refuses a server without a model, and requests that never end."""
        whole("teacher.concurrency", self.concurrency, least=1, most=MAX_CONCURRENCY)
        number("teacher.timeout", self.timeout, above=0, most=MAX_TIMEOUT_S, fix="600 seconds are usual")
        whole("teacher.retries", self.retries, most=100, fix="8 wait about a minute in all")
        if self.url and not self.url.startswith(("http://", "https://")):
            raise UserError(f"teacher.url={self.url!r} is no address; give one as http://host:8000/v1")
        if bool(self.url) != bool(self.model):
            missing, given = ("model", "url") if self.url else ("url", "model")
            raise UserError(
                f"teacher.{missing} is empty, and teacher.{given}={getattr(self, given)!r} needs it; set both for a "
                "server, or none for the checkpoint in model.path"
            )


@dataclass(frozen=True, kw_only=True)
class CleaningConfig:
    """Which questions are not asked, because they stand in the data twice or in a test set."""

    near: float
    """Questions whose pairs of words overlap by this Jaccard similarity are one; 1 leaves out only equal ones."""
    tests: tuple[str, ...]
    """Test sets whose questions must not be in the dataset: "gsm8k", "math", files, hub ids."""
    tests_column: str
    """The column of questions in those that are files or from the hub; "" is that of `data.prompt_column`."""
    overlap: float
    """A question or an answer that holds this share of the n-grams of a test question is left out."""

    def __post_init__(self) -> None:
        """Refuses shares that leave everything out."""
        number(
            "cleaning.near", self.near, least=0.3, most=1, fix="0.7 is the default, 1 leaves out only equal questions"
        )
        number(
            "cleaning.overlap", self.overlap, least=0.3, most=1, fix="0.5 is the default, 1 finds only unchanged text"
        )


@dataclass(frozen=True, kw_only=True)
class SelectionConfig:
    """Which answers go into the dataset; it may change when a job goes on, as everything is chosen anew at the end."""

    max_per_problem: int
    order: str
    """One of `ORDERS`."""
    min_tokens: int
    max_tokens: int
    """0 sets no limit; an answer that its own limit cut off is left out in any case."""
    language: str
    """The language of the thoughts, as "en" or "zh"; "" takes any."""
    min_language_share: float
    """The share of letters of the thought that must belong to the script of `language`."""
    max_bin_share: float
    """The largest share of the problems that one quarter of pass rate (up to 25 %, 50 %, 75 %, 100 %) may have."""
    shard_rows: int
    """How many rows a parquet file of the dataset has."""
    pair_margin: float
    """How far the rewards of a chosen and a rejected answer lie apart at least, for preferences; 0 writes none."""

    def __post_init__(self) -> None:
        """Refuses windows that nothing fits into."""
        whole("selection.max_per_problem", self.max_per_problem, least=1)
        one_of("selection.order", self.order, ORDERS)
        whole("selection.min_tokens", self.min_tokens)
        whole("selection.max_tokens", self.max_tokens, fix="0 sets no limit")
        number("selection.min_language_share", self.min_language_share, least=0, most=1, fix="0.9 is usual")
        number("selection.max_bin_share", self.max_bin_share, least=0.25, most=1, fix="1 does not balance")
        whole("selection.shard_rows", self.shard_rows, least=1)
        number("selection.pair_margin", self.pair_margin, least=0, fix="0 writes no preferences")
        if self.language:
            languages = sorted({name for names in SCRIPTS.values() for name in names.split()})
            one_of("selection.language", self.language, languages)
        if self.max_tokens and self.max_tokens < self.min_tokens:
            raise UserError(
                f"selection.max_tokens={self.max_tokens} is below selection.min_tokens={self.min_tokens}, so that no "
                "answer fits; raise the first or lower the second"
            )


@dataclass(frozen=True, kw_only=True)
class DistillRun(RunConfig):
    """`recipes.distill_generate`."""

    teacher: TeacherConfig
    samples: int
    """How many answers each question gets."""
    sampling: SamplingConfig
    rows_per_call: int
    """How many questions our engines are given at a time. They run empty in between, and a kill costs one call."""
    cleaning: CleaningConfig
    selection: SelectionConfig

    def __post_init__(self) -> None:
        """Checks what all recipes need, then that there is a teacher and room for its answers."""
        super().__post_init__()
        whole("samples", self.samples, least=1, most=100_000)
        whole("rows_per_call", self.rows_per_call, least=1)
        if self.data.eval_size:
            raise UserError(
                f"data.eval_size={self.data.eval_size}: nothing is held out of a dataset; set it to 0, and name what "
                "must not be in it in cleaning.tests"
            )
        if self.reward.models:
            raise UserError(
                f"reward={self.reward.fn}: a reward model judges while a policy is trained; verify a dataset with a "
                "rule, as reward=math"
            )
        if not self.teacher.url and not self.model.path:
            raise UserError(
                "model.path is empty, and a teacher is a trained model; set model.path to its folder, or teacher.url "
                "and teacher.model for a server"
            )
        if not self.teacher.url:
            self._check_room("", self.sampling)

    @property
    def content_prefix(self) -> str:
        """Returns what stands before every question in the user's message."""
        return f"{self.data.instruction}\n" if self.data.instruction else ""

    @property
    def teacher_name(self) -> str:
        """Returns who answers, as the dataset says it."""
        return self.teacher.model if self.teacher.url else self.model.path

    @property
    def longest_completion(self) -> int:
        """Returns the most tokens that are sampled after a prompt."""
        return self.sampling.max_new_tokens
