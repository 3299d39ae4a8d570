"""The settings of a pipeline: sizes, words for one stage and words for all."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlkit.errors import UserError
from rlkit.multistage.settings import as_word, has_key, read_settings


def test_words_of_the_command_line_come_behind_the_files_and_links_behind_both() -> None:
    """Of the file and of the command line, what is for all stages comes before what is for one."""
    cfg = read_settings("r1_zero", ["rl.seed=4", "seed=3", "output_dir=/there"])
    words = cfg.words("rl", "grpo", 2, {"model.path": Path("/there/1-base/model")})
    order = ["data=chain_sum", "algo.steps=20", "seed=3", "seed=4", "model.path=/there/1-base/model"]
    assert [word for word in words if word in order] == order
    assert words[-1] == "output_dir=/there/2-rl"
    assert "seed=4" not in cfg.words("base", "sft", 1, {})


R1_LINKS: dict[str, tuple[str, dict[str, Path]]] = {
    "base": ("sft", {}),
    "cold_start": ("sft", {"model.path": Path("/m")}),
    "reasoning_rl": ("grpo", {"model.path": Path("/m")}),
    "rejection_sampling": ("distill_generate", {"model.path": Path("/m")}),
    "sft_again": ("sft", {"model.path": Path("/m"), "kept": Path("/k")}),
    "preferences": ("distill_generate", {"model.path": Path("/m")}),
    "reward_model": ("reward_model", {"model.path": Path("/m"), "data.source": Path("/p")}),
    "all_scenarios_rl": ("grpo", {"model.path": Path("/m"), "scorer": Path("/s")}),
}


def last(*given: str) -> dict[str, dict[str, str]]:
    """The value that counts of each key, for every stage of R1's tiny size."""
    cfg = read_settings("r1", given)
    return {
        stage: dict(word.split("=", 1) for word in cfg.words(stage, recipe, 1, links))
        for stage, (recipe, links) in R1_LINKS.items()
    }


def test_a_word_for_all_stages_counts_more_than_the_files_word_for_one() -> None:
    found = last("algo.steps=3", "sft.steps=5", "sft_again.sft.steps=6", "data.train_size=200")
    assert {stage: words.get("sft.steps", words.get("algo.steps")) for stage, words in found.items()} == {
        **dict.fromkeys(R1_LINKS, None),
        **{"base": "5", "cold_start": "5", "sft_again": "6", "reasoning_rl": "3", "all_scenarios_rl": "3"},
    }
    assert {stage for stage, words in found.items() if words["data.train_size"] != "200"} == {"reward_model"}


def test_what_the_file_says_of_a_link_stays() -> None:
    """Pairs are a file of all rows; a reward that asks the reward model is not put in the place of one that does."""
    found = last("data=math", "data.train_size=200", "data.eval_size=7", "reward=number", "reward.kwargs={}")
    pairs = found["reward_model"]
    assert (pairs["data"], pairs["data.train_size"], pairs["data.eval_size"]) == ("file", "-1", "100")
    assert found["sft_again"]["data"] == "math" and "/k" in found["sft_again"]["data.mixture"]
    assert (found["reasoning_rl"]["reward"], found["reasoning_rl"]["reward.kwargs"]) == ("number", "{}")
    assert (
        found["all_scenarios_rl"]["reward"] == "composite" and "model:/s" in found["all_scenarios_rl"]["reward.kwargs"]
    )


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("reward_model.model.path=/x",
         "reward_model.model.path=/x: the stage reward_model takes model.path from /m; leave it out, or set "
         "base=FOLDER to start everything from another model"),
        ("reward_model.data.source=x.jsonl",
         "reward_model.data.source=x.jsonl: the stage reward_model takes data.source from /p; leave it out"),
        ("reward_model.data=x.jsonl",
         "reward_model.data=x.jsonl: the stage reward_model takes data.source from /p; leave it out"),
        ("+reward_model.model.path=/x",
         "reward_model.model.path=/x: the stage reward_model takes model.path from /m; leave it out, or set "
         "base=FOLDER to start everything from another model"),
        ("data.source=x.jsonl",
         "data.source=x.jsonl: the stage reward_model takes data.source from /p; write it for a stage that takes none, "
         "as STAGE.KEY=VALUE"),
    ],
)  # fmt: skip
def test_a_word_that_sets_what_a_link_sets_is_refused(word: str, message: str) -> None:
    cfg = read_settings("r1", [word])
    with pytest.raises(UserError) as refused:
        cfg.words("reward_model", "reward_model", 7, R1_LINKS["reward_model"][1])
    assert str(refused.value) == message
    cfg.words("base", "sft", 1, {})


def test_a_choice_of_ours_is_no_word_for_a_link() -> None:
    words = read_settings("r1", ["reward_model.data=file"]).words(
        "reward_model", "reward_model", 7, {"data.source": Path("/p")}
    )
    assert words[-2:] == ["data.source=/p", f"output_dir={Path.cwd()}/outputs/r1/7-reward_model"]


def test_a_shared_word_goes_to_the_recipes_that_have_its_key() -> None:
    cfg = read_settings("r1_zero", ["algo.steps=3"])
    assert "algo.steps=3" in cfg.words("rl", "grpo", 2, {})
    assert "algo.steps=3" not in cfg.words("base", "sft", 1, {})


def test_a_link_goes_where_its_name_stands_and_is_a_key_otherwise() -> None:
    cfg = read_settings("r1_zero", ["rl.data.mixture=[{source: '${kept}', weight: 3}, {source: '${kept}'}]"])
    words = cfg.words("rl", "grpo", 2, {"model.path": Path("base"), "kept": Path("out/3-data/dataset")})
    mixture = "data.mixture=[{source: 'out/3-data/dataset', weight: 3}, {source: 'out/3-data/dataset'}]"
    assert words[-3:] == [mixture, "model.path=base", f"output_dir={Path.cwd()}/outputs/r1_zero/2-rl"]


def test_a_wrong_value_is_no_missing_key() -> None:
    with pytest.raises(UserError, match="engine=torhc is unknown"):
        has_key("sft", "engine=torhc")
    assert has_key("sft", "sft.steps=many") and has_key("sft", "sft.schedule={}") and has_key("sft", "seed=1")
    assert has_key("sft", "data.tasks.gcd={}") and not has_key("sft", "algo.steps=1")
    assert has_key("grpo", "engine=torch") and not has_key("reward_model", "engine=torch")


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("size=small", r"size=small is unknown; r1_zero has tiny, paper"),
        ("dry_run=maybe", r"dry_run=maybe is neither true nor false"),
        ("rl.output_dir=x", r"a stage's folder is outputs/r1_zero/NUMBER-rl; set output_dir instead"),
    ],
)
def test_refusals_name_the_value_and_the_fix(word: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_settings("r1_zero", [word])


def test_values_of_the_file_are_written_as_the_command_line_has_them() -> None:
    assert as_word("a", "x y") == "a=x y"
    assert as_word("a", None) == "a=null"
    assert as_word("a", True) == "a=true"
    assert as_word("a", 3e-06) == "a=3.0e-06"
    assert as_word("a", {"rewards": ["number", "format"]}) == "a={rewards: [number, format]}"
    shared = {"b": [1]}
    assert as_word("a", [shared, shared, "所以"]) == "a=[{b: [1]}, {b: [1]}, 所以]"


def test_a_sign_before_a_stage_stays_before_its_key() -> None:
    """`~` takes a key away, which no other way of writing does."""
    cfg = read_settings("r1_zero", ["~rl.data.tasks.chain_sum", "+rl.seed=4", "rl.data.tasks.gcd={}"])
    assert cfg.given_alone["rl"] == ("~data.tasks.chain_sum", "+seed=4", "data.tasks.gcd={}")
    assert cfg.given == ()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["rl=3"], "rl=3: rl is a stage; write rl.KEY=VALUE, with a key of its recipe"),
        (["rl.dry_run=true"], "rl.dry_run=true: all stages are checked together; set dry_run instead"),
        (["output_dir=there", "base.output_dir=x"], "a stage's folder is there/NUMBER-base; set output_dir instead"),
        (["base=models/v3", "base.sft.steps=3"],
         "base.sft.steps=3: base=models/v3 takes the place of the stage base, which does not run; leave one of them"),
        (["size=papr"], "size=papr is unknown; r1_zero has tiny, paper (did you mean 'paper'?)"),
        (["size="], "size= is unknown; r1_zero has tiny, paper"),
        (["dry_run=True"], "dry_run=True is neither true nor false; give one of them"),
        (["seed"], "'seed' is not an override; write key=value"),
    ],
)  # fmt: skip
def test_words_that_belong_nowhere(words: list[str], message: str) -> None:
    with pytest.raises(UserError) as refused:
        read_settings("r1_zero", words)
    assert message in str(refused.value)


def test_the_pipelines_own_words_are_no_stages() -> None:
    cfg = read_settings("r1_zero", ["size=paper", "base=/models/v3", "output_dir=~/runs", "dry_run=true", "seed=2"])
    assert (cfg.size, cfg.base, cfg.dry_run, cfg.given) == ("paper", "/models/v3", True, ("seed=2",))
    assert cfg.output_dir == Path.home() / "runs" and cfg.folder("rl", 1) == Path.home() / "runs" / "1-rl"
    plain = read_settings("r1_zero", [])
    assert (plain.size, plain.base, plain.dry_run) == ("tiny", "", False)
    assert plain.output_dir == Path.cwd() / "outputs/r1_zero" and set(plain.stages) == {"base", "rl"}


def test_the_last_of_two_words_counts() -> None:
    cfg = read_settings("r1_zero", ["output_dir=a", "output_dir=b=c", "size=paper", "size=tiny"])
    assert (cfg.output_dir, cfg.size) == (Path.cwd() / "b=c", "tiny")
