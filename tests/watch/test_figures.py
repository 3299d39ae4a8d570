"""The figures of a stage: all that it recorded is drawn or said, whatever its name, and nothing that is not there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from rlkit.watch import Metrics
from rlkit.watch.figures import stage_figures
from tests.watch.test_report import Page, grpo, page

SFT = {"loss": 2.0, "lr": 1e-4, "grad_norm": 1.0, "tok_s": 5000.0, "entropy": 0.5, "tokens": 4096}


def lines(*steps: Mapping[str, float]) -> list[dict[str, float]]:
    return [{"step": step, **values} for step, values in enumerate(steps, start=1)]


def titles(*steps: Mapping[str, float]) -> list[str]:
    """What a person reads above each figure."""
    return [Page(figure).all("h3")[0] for figure in stage_figures(lines(*steps))[0]]


def drawn(title: str, *steps: Mapping[str, float]) -> str:
    """The text of the one figure with this title."""
    pages = [Page(figure) for figure in stage_figures(lines(*steps))[0]]
    [found] = [shown.all("figure")[0] for shown in pages if shown.all("h3")[0].startswith(title)]
    return found


@pytest.mark.parametrize("stage", ["grpo", "sft", "cold-start", "reasoning-rl", "all scenarios"])
def test_the_name_of_a_stage_says_nothing_about_its_figures(tmp_path: Path, stage: str) -> None:
    with Metrics(tmp_path, tensorboard=False, resume_after=None) as metrics:
        for step in (1, 2):
            metrics.write(stage, step, grpo(step))
        for step in (1, 2):
            metrics.write("then", step, SFT | {"loss": 2 / step})
    shown = page(tmp_path)
    assert shown.all("h2") == [stage.upper() if len(stage) <= 4 else stage, "THEN"]
    assert shown.all("h3") == [*titles(grpo(1), grpo(2)), *titles(SFT, SFT | {"loss": 1.0})]


def test_without_a_reference_there_is_no_divergence() -> None:
    steps = [{key: value for key, value in grpo(step).items() if key != "kl"} for step in (1, 2)]
    assert not [title for title in titles(*steps) if title.startswith("KL")]
    assert [title for title in titles(grpo(1), grpo(2)) if title.startswith("KL")]


def test_multi_token_prediction_and_drafts_have_their_curves() -> None:
    more = [{"mtp_loss": 3.0 / step, "drafts_accepted": 0.25 * step} for step in (1, 2, 3)]
    for base in (grpo(1), SFT):
        steps = [base | values for values in more]
        assert drawn("Multi-token prediction nats per token", *steps).endswith("1")
        assert drawn("Drafts accepted share of drafts", *steps).endswith("75.0 %")


@pytest.mark.parametrize("base", [grpo(1), SFT, {}])
@pytest.mark.parametrize("name", ["better_tokens", "value_loss", "balance_loss", "kl_teacher", "x", "pairs"])
def test_a_number_of_a_new_loss_is_drawn_under_its_name(base: Mapping[str, float], name: str) -> None:
    steps = [{**base, name: 0.125 * step} for step in (1, 2, 3)]
    assert drawn(name, *steps).endswith("0.375")
    assert titles(*steps)[-1] == f"{name} as recorded"
    assert len(titles(*steps)) == len(titles(base, base, base)) + 1


def test_what_is_recorded_is_drawn_or_said_to_be_the_same() -> None:
    """Every number of a stage has its place: none is in the record only."""
    names = [*grpo(1), "mtp_loss", "drafts_accepted", "part/a", "log/b", "max_violation", "max_violation/1", "new"]
    steps = [dict.fromkeys([*names, "old/1"], 0.1 * step) | {"groups": 8, "old": 3.0} for step in (1, 2)]
    shown = " ".join(titles(*steps))
    words = ("new as", "b logged", "Cut off", "masked", "Expert load", "Multi-token", "Learning rate", "Loss")
    assert all(word in shown for word in words), shown
    assert stage_figures(lines(*steps))[1] == {"groups": 8, "old": 3.0}


def test_a_number_that_never_changes_is_a_word_and_no_curve(tmp_path: Path) -> None:
    with Metrics(tmp_path, tensorboard=False, resume_after=None) as metrics:
        for step in (1, 2, 3):
            metrics.write("warm-up", step, SFT | {"loss": 2 / step, "pairs": 64})
    shown = page(tmp_path)
    assert not [title for title in shown.all("h3") if title.startswith("pairs")]
    assert "The same at every step: pairs 64." in shown.all("p")
    assert stage_figures(lines(SFT))[1] == {}, "of one step nothing can be said"


def test_sizes_far_apart_are_drawn_on_a_log_axis() -> None:
    assert "10-6" in drawn("gap", *({"gap": 10.0**-power} for power in (2, 4, 6)))
    assert "10-6" not in drawn("gap", *({"gap": value} for value in (0.0, 1e-6, 1e-2)))


@pytest.mark.parametrize(
    ("members", "figures", "words"),
    [
        (2, ["probe"], ["00.25", "11.25"]),
        (4, ["probe"], ["00.25", "11.25", "22.25", "33.25"]),
        (5, ["probe", "probe/4"], ["00.25", "33.25", "4.25"]),
        (58, ["probe"], ["highest57.2", "median28.8", "lowest0.25"]),
    ],
)
def test_a_family_of_numbers_shares_figures(members: int, figures: Sequence[str], words: Sequence[str]) -> None:
    """Each label is the name of the curve and its last value, n + 1/4 in the last of two steps."""
    steps = [{"loss": 1.0 / step} | {f"probe/{n}": n + step / 8 for n in range(members)} for step in (1, 2)]
    found = [Page(figure).all("figure")[0] for figure in stage_figures(lines(*steps))[0]]
    families = [figure for figure in found if figure.startswith("probe")]
    assert [figure.split()[0] for figure in families] == figures
    assert all(word in "".join(families) for word in words)


def test_details_of_a_number_that_is_drawn_are_not_drawn_again() -> None:
    steps = [{"loss": 1 / step, "margin": step} | {f"margin/{n}": n + step for n in range(3)} for step in (1, 2)]
    assert [title for title in titles(*steps) if "margin" in title] == ["margin as recorded"]


def test_what_rewards_log_has_a_figure_each_up_to_a_number() -> None:
    steps = [grpo(step) | {f"log/n{n}": n * 1000.0 + step for n in range(10)} for step in (1, 2)]
    shown = [title for title in titles(*steps) if "logged by the reward" in title]
    assert len(shown) == 8 and all(title.endswith("2 more in metrics.jsonl") for title in shown)


def test_the_phases_of_a_step_are_those_that_it_had() -> None:
    of_its_own = {"teach_s": 2.0, "train_s": 1.0, "reward_p50_s": 9.0, "teach_tok_s": 7.0}
    figure = drawn("Time of a step", of_its_own, of_its_own | {"teach_s": 4.0})
    assert figure.endswith("teach3train1") and "sample" not in figure and "reward" not in figure
    assert drawn("Speed", of_its_own, of_its_own | {"teach_tok_s": 8.0}).endswith("8")


def test_cut_off_completions_are_drawn_where_there_are_any() -> None:
    assert "Cut off share of rollouts" in titles(grpo(1), grpo(2, truncated=0.25))
    assert not [title for title in titles(grpo(1), grpo(2)) if "ut off" in title or "truncated" in title]


def test_a_stage_that_only_trains_is_drawn_as_such() -> None:
    steps = [{"loss": 0.7 / step, "accuracy": 0.5 * step} for step in (1, 2)]
    assert titles(*steps) == ["Accuracy share of the batch", "Loss what the optimiser lowers"]
    assert titles(SFT, SFT)[0] == "Loss nats per token"


def test_parts_of_the_reward_are_curves(tmp_path: Path) -> None:
    with Metrics(tmp_path, tensorboard=False, resume_after=None) as metrics:
        for step in (1, 2):
            metrics.write("grpo", step, {"reward": 1.1, "part/number": step / 2, "part/format": 0.25})
    [figure] = [figure for figure in page(tmp_path).all("figure") if figure.startswith("Parts of the reward")]
    assert figure.endswith("number1format0.25")


def test_verdicts_of_the_steps_are_curves(tmp_path: Path) -> None:
    """The four most frequent; one that a step does not name did not occur in it."""
    with Metrics(tmp_path, tensorboard=False, resume_after=None) as metrics:
        for step in (1, 2):
            counts = {"reason/wrong": 48, "reason/correct": 0, "reason/a": 3, "reason/b": 2, "reason/c": 1}
            metrics.write("grpo", step, counts if step == 1 else {"reason/correct": 30, "reason/wrong": 30})
    shown = page(tmp_path)
    [figure] = shown.all("figure")
    assert figure.startswith("Verdicts share of rollouts")
    assert figure.endswith("wrong50.0 %correct50.0 %a0.0 %b0.0 %"), "the labels are of the last step"


@pytest.mark.parametrize(
    ("layers", "names"), [(3, ["layer 1", "layer 2", "layer 3"]), (9, ["worst layer", "median layer"])]
)
def test_the_load_of_the_experts_is_drawn_by_layer_or_for_many_layers_summed_up(
    tmp_path: Path, layers: int, names: list[str]
) -> None:
    """Layer i has the load 1 + i / step; in the last step, 10, of 9 layers the worst has 1.9 and the median 1.5."""
    with Metrics(tmp_path, tensorboard=False, resume_after=None) as metrics:
        for step in range(1, 11):
            load = {f"max_violation/{i}": 1 + i / step for i in range(1, layers + 1)}
            load |= {"max_violation": 1 + layers / step, "mean_violation": 0.25, "load_entropy": 0.75}
            metrics.write("sft", step, {"loss": 1.0} | load)
            metrics.write("grpo", step, grpo(step) | load)
        metrics.write("grpo", 11, {"reward": 1.0, "groups": 4, "flat_groups": 4})  # a skipped step has no load
    shown = page(tmp_path)
    assert [title for title in shown.all("h3") if "oad" in title] == [
        "Expert load busiest expert / mean", "Evenness of the load of the experts",
    ] * 2  # fmt: skip
    drawn = [figure for figure in shown.all("figure") if figure.startswith("Expert load")]
    for figure in drawn:
        assert all(name in figure for name in names)
        assert not any(name in figure for name in {"layer 1", "worst layer"} - set(names))
    labels = (
        [f"{name}{1 + int(name[-1]) / 10:.3g}" for name in names]
        if layers == 3
        else ["worst layer1.9", "median layer1.5"]
    )
    assert all(label in drawn[0] for label in labels)
