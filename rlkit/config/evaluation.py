"""What `rlkit eval` may be told."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rlkit.checks import whole
from rlkit.config.groups import RewardConfig
from rlkit.config.runs import EngineRun
from rlkit.config.stages import SamplingConfig
from rlkit.errors import UserError


@dataclass(frozen=True, kw_only=True)
class SamplingChoice:
    """How completions are drawn, where it is not as the suite says; None leaves it to the suite."""

    temperature: float | None
    top_p: float | None
    max_new_tokens: int | None

    def __post_init__(self) -> None:
        """Refuses what no sampler can do."""
        self.over(SamplingConfig(temperature=1.0, top_p=1.0, max_new_tokens=1))

    def over(self, own: SamplingConfig) -> SamplingConfig:
        """Returns the suite's own sampling with what is set here in its place."""
        return replace(own, **{key: value for key, value in asdict(self).items() if value is not None})


@dataclass(frozen=True, kw_only=True)
class EvalRun(EngineRun):
    """`rlkit eval`: a model and the suites that it is measured on."""

    suite: str
    """One name or several with commas between them: a suite of rlkit, a file of questions, or a suite file."""
    suite_dir: Path
    """The folder of files that cannot be shipped."""
    samples: int
    """How many completions of each problem are drawn."""
    size: int
    """How many problems of each suite are taken, the first ones; -1 takes all."""
    instruction: str | None
    """A text that is put before every question; None takes each suite's own."""
    sampling: SamplingChoice
    reward: RewardConfig
    """The reward of all suites; with `fn=""` each suite has its own."""

    def __post_init__(self) -> None:
        """Checks what everything that samples needs, then the numbers of problems and samples."""
        super().__post_init__()
        whole("samples", self.samples, least=1)
        if self.size != -1:
            whole("size", self.size, least=1, fix="-1 takes all problems")
        if self.reward.kwargs and not self.reward.fn:
            raise UserError(
                f"reward.kwargs={self.reward.kwargs} are settings of reward.fn, which is empty, so that each suite has "
                "its own reward; set reward.fn too"
            )
        if self.sampling.temperature == 0 and self.samples > 1:
            raise UserError(
                f"sampling.temperature=0 is greedy, so that all samples={self.samples} of a problem would be equal; "
                "set samples=1, or another temperature"
            )


@dataclass(frozen=True, kw_only=True)
class SuiteConfig:
    """A suite file: data, prompt, reward and default sampling."""

    title: str
    about: str
    """What it is, and where its data are from."""
    source: str
    """"gsm8k", "humaneval", "mbpp", "reasoning_gym", or the name of a file, with or without its ending."""
    tasks: dict[str, Any]
    """For reasoning_gym: {task: its parameters}."""
    size: int
    prompt_column: str
    """A column, or a template of several."""
    answer_column: str
    """"" where programs are judged by tests."""
    instruction: str
    reward: str
    kwargs: dict[str, Any]
    sampling: SamplingConfig

    def __post_init__(self) -> None:
        """Refuses a number of problems that there cannot be."""
        if self.size != -1:
            whole("size", self.size, least=1, fix="-1 takes all problems")
