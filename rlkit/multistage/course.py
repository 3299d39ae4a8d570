"""A pipeline from its first stage to its report: every stage is checked before the first one starts.

A stage is an ordinary run in a folder of its own, so it goes on from its newest checkpoint when it was killed, and a
person can repeat it alone with the command line that its `stage.json` keeps.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from time import monotonic, time

from rlkit.config.compose import clear_errors
from rlkit.errors import UserError
from rlkit.multistage.ledger import StageRow, is_done, measure, read_row, start_clock, write_row
from rlkit.multistage.origin import check_places
from rlkit.multistage.page import write_page
from rlkit.multistage.settings import BASE, PipelineConfig, read_settings
from rlkit.multistage.stage import Links, Made, Pipeline, Recipe, recipe_name
from rlkit.multistage.table import table
from rlkit.plan.recipes import RECIPES
from rlkit.quant.fp8 import FLOAT8
from rlkit.run.fit import SHAPE
from rlkit.run.lock import Lock

Story = Callable[[Pipeline], None]
MODEL_PATH = "model.path"
DTYPE = "trainer.dtype="


def run_pipeline(name: str, story: Story, argv: Sequence[str] | None) -> None:
    """Runs a pipeline with the command line's words: checks all of its stages, then runs those that are not done.

    `--cfg job` prints the command line of every stage and starts nothing; `dry_run=true` also looks whether the user's
    files and folders are there, and reads the first stage's data.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    look = "--cfg" in words or "--cfg=job" in words
    with clear_errors():
        if {"-h", "--help"} & set(words):
            print(_help(name))
            return
        cfg = read_settings(name, [word for word in words if word not in ("--cfg", "job", "--cfg=job")])
        checked = Checked(cfg, look=look)
        story(checked)
        checked.refuse_unused()
        if look or cfg.dry_run:
            data = (
                "" if look else ", the first one's data too, and the files and folders that the others name are there"
            )
            end = f"nothing was started; the settings of all stages are in order{data}"
            print("\n\n".join([*checked.commands, end]))
            return
        lock = Lock(cfg.output_dir)
    running = Running(cfg, total=len(checked.commands))
    try:
        story(running)
    finally:
        lock.release()
        running.show()


class Checked:
    """Goes through the stages without starting any: every recipe reads its settings, as for `--cfg job`.

    Unless `look` is all that is asked for, the files and folders that the user names must be there as well.
    """

    def __init__(self, cfg: PipelineConfig, *, look: bool) -> None:
        self.cfg, self.look = cfg, look
        self.commands: list[str] = []
        """The command line of each stage, in order."""
        self._shared: set[str] = set()
        self._in_float8: dict[Path, str] = {}
        """The models that will be written in FP8, and the stages that make them."""

    def base(self, recipe: Recipe) -> Made:
        """`Pipeline.base`."""
        if not self.cfg.base:
            return self.run(BASE, recipe, {})
        if not Path(self.cfg.base).is_dir():
            raise UserError(f"base={self.cfg.base} is no folder; give the folder of a checkpoint")
        return Made(folder=self.cfg.output_dir, origin=Path(self.cfg.base))

    def run(self, name: str, recipe: Recipe, links: Links) -> Made:
        """`Pipeline.run`: what earlier stages have yet to make is left out of the settings that are checked."""
        if name not in self.cfg.stages:
            raise UserError(f"size={self.cfg.size} of {self.cfg.name} has no settings for the stage {name}")
        number, called = len(self.commands) + 1, recipe_name(recipe)
        words = self.cfg.words(name, called, number, links)
        self._shared |= set(words)
        made = Made(folder=self.cfg.folder(name, number))
        self._check_float8(name, words, links, made)
        self._read(name, called, [*self._readable(called, words, links), "--cfg", "job"], recipe)
        if not self.look:
            check_places(name, called, words, list(links.values()))
        if is_done(made):
            read_row(made, self.cfg.origin(name, called, number, links))
        elif self.cfg.dry_run and not self.look and not self.commands:
            self._read(name, called, [*words, "dry_run=true"], recipe)
        self.commands.append(f"rlkit run {called} {shlex.join(words)}")
        return made

    def _check_float8(self, name: str, words: Sequence[str], links: Links, made: Made) -> None:
        """Raises UserError if a stage starts from a model in FP8, which no run does."""
        for path in links.values():
            if before := self._in_float8.get(path):
                raise UserError(
                    f"the stage {before} has trainer.dtype in FP8 and writes its model so, and the stage {name} does "
                    f"not start from FP8; set {before}.trainer.dtype=bf16, or train only the last stage in FP8"
                )
        dtypes = [word.removeprefix(DTYPE) for word in words if word.startswith(DTYPE)]
        if dtypes and dtypes[-1] in FLOAT8:
            self._in_float8[made.model] = name

    def _read(self, name: str, called: str, words: Sequence[str], recipe: Recipe) -> None:
        """Lets a recipe read what it is told without a word of its own, unless something is wrong."""
        try:
            with redirect_stdout(StringIO()):
                recipe.main(words)
        except SystemExit:
            print(f"in stage {name} of {self.cfg.name}, which runs recipe {called}", file=sys.stderr)
            raise

    def _readable(self, called: str, words: Sequence[str], links: Links) -> list[str]:
        """Returns words of which nothing is read that is still to be made.

        In the place of a model that is still to be trained stands the base, which has its shape. Where that is to be
        trained too, recipes that print what follows from the shape take it from the settings.
        """
        path = links.get(MODEL_PATH)
        if path is None or path.exists():
            return list(words)
        rest = [word for word in words if word != f"{MODEL_PATH}={path}"]
        if self.cfg.base:
            return [*rest, f"{MODEL_PATH}={self.cfg.base}"]
        if called in RECIPES:
            return rest
        return [*(word for word in rest if not word.startswith(SHAPE)), f"{MODEL_PATH}={path}"]

    def refuse_unused(self) -> None:
        """Raises UserError for words that no stage has."""
        for word in self.cfg.given:
            if word not in self._shared:
                raise UserError(
                    f"{word}: no stage of {self.cfg.name} has this key; for one stage alone write STAGE.KEY=VALUE, "
                    f"with one of {', '.join(self.cfg.stages)}"
                )


class Running:
    """Runs the stages, each as `rlkit run` would."""

    def __init__(self, cfg: PipelineConfig, total: int) -> None:
        self.cfg, self.total = cfg, total
        self.rows: list[StageRow] = []
        self._made: list[Made] = []

    def base(self, recipe: Recipe) -> Made:
        """`Pipeline.base`."""
        if self.cfg.base:
            return Made(folder=self.cfg.output_dir, origin=Path(self.cfg.base))
        return self.run(BASE, recipe, {})

    def run(self, name: str, recipe: Recipe, links: Links) -> Made:
        """`Pipeline.run`."""
        number, called = len(self._made) + 1, recipe_name(recipe)
        words = self.cfg.words(name, called, number, links)
        made = Made(folder=self.cfg.folder(name, number))
        origin = self.cfg.origin(name, called, number, links)
        with clear_errors():
            row = read_row(made, origin)
        print(f"\nstage {number}/{self.total} {name}: {called} in {made.folder}{', done before' if row else ''}")
        if row is None:
            worked, begin = start_clock(made, time()), monotonic()
            recipe.main(words)
            row = measure(name, called, words, made, worked + monotonic() - begin)
            write_row(made, row, origin)
        self._made.append(made)
        self.rows.append(row)
        return made

    def show(self) -> None:
        """Prints the table of the stages that are done, and writes the report of them."""
        if self.rows:
            print(f"\n{table(self.rows)}")
            print(f"report: {write_page(self.cfg.output_dir, self.cfg.name, self.rows, self._made)}")


def _help(name: str) -> str:
    tiny = read_settings(name, [])
    return (
        f"usage: rlkit run {name} [size=tiny|paper] [base=FOLDER] [output_dir=FOLDER] [key=value ...] [--cfg job]\n\n"
        f"  stages       {', '.join(tiny.stages)}\n"
        "  STAGE.key=value  a key of one stage's recipe, as cold_start.sft.steps=10\n"
        "  key=value    a key for every stage whose recipe has it, as seed=1 or cluster=local\n"
        "  base         the folder of the model that everything starts from; empty trains one first\n"
        "  --cfg job    print the command line of every stage; start nothing"
    )
