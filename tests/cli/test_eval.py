"""What `rlkit eval` refuses before it looks at a model, and who holds a folder."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rlkit.cli.eval import main
from rlkit.errors import UserError
from rlkit.run.lock import Lock


@pytest.mark.parametrize("text", ["[1]", "null", "reward: 7", "a: b: c", "seed: 0", "\x00", ""])
def test_a_saved_configuration_that_is_none_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UserError, match=r"config\.yaml is no configuration of an evaluation \(.*; correct output_dir"):
        main(["--rescore", "number", f"output_dir={tmp_path}"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--rescore"], "--rescore needs a reward: a name, package.module:function or file.py:function"),
        (["--rescore="], "--rescore needs a reward"),
        (["--rescore=math", "samples=2"], "samples: without MODEL, --rescore takes output_dir=DIR alone"),
        (["a", "b"], "takes one MODEL, not a and b; suites are given as suite=a,b"),
        (["suite=gsm8k"], "needs the folder of a model"),
        (["compare"], "needs two folders of evaluations, or more"),
        (["compare", "a", "b", "samples=2"], "samples is no setting of 'rlkit eval compare'; there is output_dir=DIR"),
    ],
)
def test_words_that_make_no_command(words: list[str], said: str) -> None:
    with pytest.raises(UserError) as refused:
        main(words)
    assert said in str(refused.value)


@pytest.mark.parametrize("model", ["job", "./lr=3", "some/lr=3.x"])
def test_a_model_may_have_any_name(model: str) -> None:
    words = ["--cfg", "job", model, "suite=gsm8k"]
    with pytest.raises(UserError, match=re.escape(f"{Path(model)}: no such folder")):
        main(words)


def test_a_folder_that_is_held_is_not_evaluated_by_another(tmp_path: Path) -> None:
    from rlkit.evaluation.run import opened

    held = Lock(tmp_path)
    with pytest.raises(UserError, match=r"is in use by another run .*wait for it, end it"), opened(tmp_path):
        pytest.fail("two are in one folder")
    held.release()
    with opened(tmp_path):
        pass
    with pytest.raises(SystemExit) as left, opened(tmp_path):
        raise KeyboardInterrupt
    assert left.value.code == 130
    with opened(tmp_path):  # whatever ended it has let go
        pass
