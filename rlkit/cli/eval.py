"""`rlkit eval MODEL suite=... [--rescore REWARD]` and `rlkit eval compare A B ...`: what a model can do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from rlkit.config import EvalRun
from rlkit.config.compose import load_config, parse, parse_command, to_yaml
from rlkit.errors import UserError
from rlkit.evaluation.compare import compare
from rlkit.evaluation.exams import write_exams
from rlkit.evaluation.run import evaluate_model, rescore
from rlkit.evaluation.suites import read_suites, suite_names
from rlkit.model.load import kind_of
from rlkit.overrides import read_override
from rlkit.run.inputs import CONFIG_FILE

USAGE = """usage: rlkit eval MODEL suite=NAME,... [key=value ...] [--rescore REWARD] [--cfg job]
       rlkit eval --rescore REWARD output_dir=DIR
       rlkit eval compare DIR_A DIR_B ... [output_dir=DIR]

  MODEL       the folder of a checkpoint: DeepSeek-V3, or any causal language model of transformers
  suite       {suites}, your own files
              of questions and answers (.jsonl, .json, .parquet), suite files (.yaml); several with commas
  key=value   samples=4  size=100  output_dir=DIR  seed=0  instruction=TEXT  sampling.temperature=0.6
              sampling.max_new_tokens=N  cluster=local engine=torch  reward=NAME; --cfg job shows all
  --rescore   judge the completions in output_dir by another reward; nothing is drawn
  compare     every evaluation with the first, problem by problem"""
DEFAULT_COMPARE = "outputs/eval_compare"


def main(argv: Sequence[str]) -> None:
    """Runs one of the three commands; raises UserError for a mistake in the words."""
    if not argv or {"-h", "--help"} & set(argv):
        print(USAGE.format(suites=", ".join(suite_names())))
        return
    if argv[0] == "compare":
        _compare(argv[1:])
        return
    words, judge = _take_rescore(argv)
    models, others = _take_models(words)
    if len(models) > 1:
        raise UserError(f"'rlkit eval' takes one MODEL, not {' and '.join(models)}; suites are given as suite=a,b")
    if judge and not models:
        rescore(_stored(others, judge))
        return
    if not models:
        raise UserError(f"'rlkit eval' needs the folder of a model\n\n{USAGE.format(suites=', '.join(suite_names()))}")
    command = parse_command("eval", others)
    chosen = [f"reward.fn={judge}"] if judge else []
    model = [f"model.path={models[0]}", f"model.kind={kind_of(Path(models[0]).expanduser())}"]
    cfg = load_config("eval", EvalRun, [*model, *command.overrides, *chosen])
    if command.print_only or cfg.dry_run:
        _show(cfg, print_only=command.print_only)
    elif judge:
        given = ["model.path", *(read_override(word).key for word in command.overrides)]
        rescore(_over_stored(cfg, given), given)
    else:
        evaluate_model(cfg)


def _compare(words: Sequence[str]) -> None:
    folders = [Path(word).expanduser() for word in words if "=" not in word]
    settings = {read_override(word).key: read_override(word).text for word in words if "=" in word}
    if odd := [key for key in settings if key != "output_dir"]:
        raise UserError(f"{odd[0]} is no setting of 'rlkit eval compare'; there is output_dir=DIR")
    compare(folders, Path(settings.get("output_dir", DEFAULT_COMPARE)).expanduser())


def _take_rescore(argv: Sequence[str]) -> tuple[list[str], str]:
    """Splits `--rescore REWARD` from the other words; the reward is "" without."""
    words, judge = list(argv), ""
    for place, word in enumerate(argv):
        flag, separator, value = word.partition("=")
        if flag == "--rescore":
            judge = value if separator else next(iter(argv[place + 1 : place + 2]), "")
            if not judge:
                raise UserError("--rescore needs a reward: a name, package.module:function or file.py:function")
            del words[place : place + (1 if separator else 2)]
            break
    return words, judge


def _take_models(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Splits folders from settings and flags: a key holds no slash, and what follows `--cfg` is its value."""
    places = [
        place
        for place, word in enumerate(words)
        if not word.startswith("-") and ("=" not in word or "/" in word.partition("=")[0])
        if words[place - 1 : place] != ["--cfg"]
    ]
    return [words[place] for place in places], [word for place, word in enumerate(words) if place not in places]


def _stored(words: Sequence[str], judge: str) -> EvalRun:
    """Returns the configuration that an evaluation was made with, with another reward."""
    settings = {read_override(word).key: read_override(word).text for word in words}
    if odd := [key for key in settings if key != "output_dir"]:
        raise UserError(
            f"{odd[0]}: without MODEL, --rescore takes output_dir=DIR alone, and all else from {CONFIG_FILE} there"
        )
    return parse(EvalRun, _saved(Path(settings.get("output_dir", "outputs/eval")).expanduser(), judge))


def _saved(folder: Path, judge: str) -> dict[str, Any]:
    file = folder / CONFIG_FILE
    if not file.is_file():
        raise UserError(f"output_dir={folder} holds no evaluation: there is no {file}; correct output_dir")
    try:
        found = yaml.safe_load(file.read_text(encoding="utf-8"))
        changed = {"output_dir": str(folder), "reward": {**found["reward"], "fn": judge, "kwargs": {}}}
        return found | changed
    except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError) as error:
        why = str(error).splitlines()[0]
        raise UserError(f"{file} is no configuration of an evaluation ({why}); correct output_dir") from error


def _over_stored(cfg: EvalRun, given: Sequence[str]) -> EvalRun:
    """Returns the configuration of a stored evaluation with the keys that a command gives, and its reward."""
    found, now = _saved(cfg.output_dir, cfg.reward.fn), yaml.safe_load(to_yaml(cfg))
    groups = {key.split(".")[0] for key in given} & {"engine", "cluster"}
    # What a group has depends on its kind, and an engine's kind on the cluster's.
    whole = ("reward", "engine", "cluster") if groups else ("reward",)
    for key in (*whole, *(key for key in given if key.split(".")[0] not in whole)):
        *path, last = key.split(".")
        there, here = found, now
        for name in path:
            there, here = there[name], here[name]
        there[last] = here[last]
    return parse(EvalRun, found)


def _show(cfg: EvalRun, *, print_only: bool) -> None:
    """Prints the configuration, and with dry_run=true what would be drawn after everything was checked."""
    print(to_yaml(cfg))
    if not print_only:
        cfg, exams = write_exams(read_suites(cfg), cfg)
        for exam in exams:
            tokens = f"at most {exam.sampling.max_new_tokens:,} tokens each"
            number = len(exam.prompts)
            print(f"{exam.suite.about.title}: {number:,} problems x {cfg.samples} samples, {tokens}")
    print("nothing was started")
