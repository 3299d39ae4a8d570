"""The `rlkit` command: how a recipe is found, what the help says, and that no file of the user's hides a module."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import rewards
from rewards.own_files import own_modules
from rlkit.cli.main import forget_current_folder, main
from rlkit.cli.run import find_recipe, recipe_names
from rlkit.config import GrpoRun
from rlkit.config.compose import ConfigError, load_config, parse_command
from rlkit.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
RECIPE = "def main(argv):\n    print('mine', *argv)\n"


@pytest.fixture(autouse=True)
def search_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command changes the search path, which other tests need as it is."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))


def said(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What the command prints when it refuses."""
    with pytest.raises(SystemExit) as leaving:
        main(words)
    assert leaving.value.code == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ") and "Traceback" not in printed
    return printed


def test_the_recipes_are_the_modules_of_the_package() -> None:
    assert recipe_names() == sorted(file.stem for file in (ROOT / "recipes").glob("[!_]*.py"))
    assert {"sft", "grpo", "sft_then_grpo"} <= set(recipe_names())


@pytest.mark.parametrize("place", ["./mine.py", "mine.py", "deep/er/my recipe (2).py", "~/mine.py", "läufe/mine.py"])
def test_a_recipe_file_is_run_from_any_place(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    file = Path(place).expanduser()
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(RECIPE)
    main(["run", place, "seed=1", "x=a=b"])
    assert capsys.readouterr().out == "mine seed=1 x=a=b\n"


def test_a_recipe_is_found_by_import_path_installed_or_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "my_package_of_recipes").mkdir()
    (tmp_path / "my_package_of_recipes" / "first.py").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    main(["run", "my_package_of_recipes.first", "seed=1"])
    assert capsys.readouterr().out == "mine seed=1\n"
    assert find_recipe("recipes.grpo") is find_recipe("grpo")


def test_a_recipe_file_imports_what_lies_beside_it_and_hides_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("rewards", "rlkit", "tokenizers", "json"):
        (tmp_path / f"{name}.py").write_text(f"raise SystemExit('{name} was imported from the current folder')")
    (tmp_path / "my_loss_beside.py").write_text("LIMIT = 3\n")
    code = "import json, rewards, rlkit, tokenizers\nfrom my_loss_beside import LIMIT\ndef main(argv): ...\n"
    (tmp_path / "mine.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    forget_current_folder()
    module = find_recipe("mine.py")
    assert module.LIMIT == 3 and module.rewards is rewards
    assert {"my_loss_beside", module.__name__} <= {own.__name__ for own in own_modules()}
    assert not any(own.__name__.startswith(("rewards", "rlkit", "json")) for own in own_modules())


@pytest.mark.parametrize(
    ("word", "words"),
    [
        (
            "gripo",
            ["recipe 'gripo' is unknown (did you mean 'grpo'?)", "grpo, on_policy_distill, r1, r1_zero", "./file.py"],
        ),
        ("mine", ["recipe 'mine' is unknown", "the file here is ./mine.py"]),
        ("no_such.module", ["recipe 'no_such.module' is unknown", "package.module"]),
        ("recipes.gripo", ["recipe 'recipes.gripo' is unknown"]),
        ("a b", ["recipe 'a b' is unknown"]),
        ("", ["recipe '' is unknown"]),
        ("./min.py", ["./min.py: there is no such file (did you mean 'mine.py'?)", "correct the path"]),
        ("nowhere/mine.py", ["nowhere/mine.py: there is no such file"]),
        ("./mine", ["./mine is no Python file", "./my_recipe.py"]),
        ("./empty.py", ["./empty.py: it has no function main", "define main(argv)"]),
        ("folder.py", ["folder.py: there is no such file"]),
        ("json", ["recipe 'json' is unknown"]),
        ("os.path", ["os.path: it has no function main"]),
    ],
)
def test_what_is_no_recipe_is_refused_with_a_fix(
    word: str, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.py").write_text(RECIPE)
    (tmp_path / "empty.py").write_text("main = 3\n")
    (tmp_path / "folder.py").mkdir()
    monkeypatch.chdir(tmp_path)
    printed = said(capsys, "run", word)
    for part in words:
        assert part in printed, printed


@pytest.mark.parametrize("code", ["1 / 0\n", "import no_such_module_here\n", "def main(:\n", "raise ValueError('x')\n"])
def test_a_fault_in_the_users_recipe_keeps_its_traceback(code: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(code)
    with pytest.raises((ZeroDivisionError, ModuleNotFoundError, SyntaxError, ValueError)) as raised:
        main(["run", str(tmp_path / "mine.py")])
    assert not isinstance(raised.value, UserError)


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["run", "--help"], ["run", "-h"]])
def test_help_lists_the_recipes(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    main(words)
    printed = capsys.readouterr().out
    assert printed.startswith("usage: rlkit run RECIPE") and ", ".join(recipe_names()) in printed


@pytest.mark.parametrize(
    ("words", "part"),
    [(["run"], "'rlkit run' needs a recipe"), (["rum"], "did you mean 'run'?"), (["grpo"], "'grpo' is not a command")],
)
def test_what_is_no_command(words: list[str], part: str, capsys: pytest.CaptureFixture[str]) -> None:
    printed = said(capsys, *words)
    assert part in printed and "usage: rlkit run RECIPE" in printed


@pytest.mark.parametrize("columns", ["20", "60", "80", "300"])
def test_the_help_of_a_recipe_breaks_no_name(
    columns: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    with pytest.raises(SystemExit) as leaving:
        main(["run", "grpo", "--help"])
    assert leaving.value.code == 0
    printed = capsys.readouterr().out
    groups = [folder.name for folder in (ROOT / "configs").iterdir() if list(folder.glob("*.yaml"))]
    groups.remove("suites")  # these are what `rlkit eval` measures, no settings of a recipe
    groups.remove("pipelines")  # and these are recipes of several stages
    files = [file.stem for folder in groups for file in (ROOT / "configs" / folder).glob("*.yaml")]
    words = printed.replace("{", " ").replace("}", " ").replace(",", " ").replace("=", " ").split()
    assert {*groups, *files} - {"context", "toy", "v3_128k"} <= set(words)
    assert "context" not in words, "only recipe extend_context has that group"
    assert "configs/grpo.yaml" in printed and "engine={torch, vllm}" in " ".join(printed.split())


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--seed=1"], "--seed=1 is no flag of a recipe; settings are written without dashes (seed=1)"),
        (["--dry-run"], "(dry_run=...)"),
        (["--multirun", "seed=1,2"], "--multirun is no flag"),
        (["--cfg", "hydra"], "--cfg=hydra is unknown; use --cfg job"),
        (["--cfg"], "use --cfg job"),
        (["context=toy"], "context: recipe grpo has no such group"),
    ],
)
def test_flags_that_a_recipe_does_not_have(words: list[str], part: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load_config("grpo", GrpoRun, parse_command("grpo", words).overrides)
    assert part in str(refused.value)


def test_flags_may_stand_anywhere() -> None:
    for words in (["seed=1", "--cfg", "job", "resume=never"], ["--cfg=job", "seed=1", "resume=never"]):
        command = parse_command("grpo", words)
        assert (command.overrides, command.print_only) == (("seed=1", "resume=never"), True)


def test_a_yaml_file_beside_a_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may build on ours; what else lies beside it takes the place of nothing."""
    (tmp_path / "engine").mkdir()
    (tmp_path / "run.yaml").write_text("seed: 99\n")
    (tmp_path / "engine" / "torch.yaml").write_text("kind: vllm\n")
    (tmp_path / "engine" / "mine.yaml").write_text("defaults: [torch, _self_]\nmax_num_seqs: 7\n")
    file = tmp_path / "meine größe (1).yaml"
    file.write_text("defaults: [grpo, _self_]\nrecipe: mine\nalgo: {steps: 3}\n")
    for recipe in (file, str(file)):
        cfg = load_config(recipe, GrpoRun, ["algo.group_size=4", "engine=mine"])
        assert (cfg.recipe, cfg.output_dir, cfg.algo.steps, cfg.algo.group_size) == ("mine", Path("outputs/mine"), 3, 4)
        assert (cfg.seed, cfg.engine.kind, cfg.engine.max_num_seqs) == (0, "torch", 7)
    monkeypatch.chdir(tmp_path)
    for name, content, part in (
        ("gone.yaml", None, "gone.yaml: there is no such file"),
        ("torn.yaml", "defaults: [grpo\n", "torn.yaml"),
        ("latin.yaml", "defaults: [grpo, _self_]\nrecipe: gr\udcf6sse\n", "latin.yaml: 'utf-8' codec can't decode"),
        ("other.yaml", "defaults: [nothing]\n", "nothing"),
        ("typo.yaml", "defaults: [grpo, _self_]\nalgo: {step: 3}\n", "algo.step is not a key (did you mean 'steps'?)"),
    ):
        if content is not None:
            Path(name).write_text(content, errors="surrogateescape")
        with pytest.raises(ConfigError) as refused:
            load_config(name, GrpoRun)
        assert part in str(refused.value)


def test_the_help_needs_no_torch() -> None:
    """Whoever asks for help waits a moment, not seconds; and Ctrl-C finds little to interrupt."""
    script = "import sys; from rlkit.cli.main import main; main(['--help']); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "usage" in done.stdout
