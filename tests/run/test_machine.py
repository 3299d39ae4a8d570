"""What the machine refuses is said before anything starts, in a dry run as well, and leaves nothing behind."""

from __future__ import annotations

import os
import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from recipes import grpo
from rlkit.config import GrpoRun
from rlkit.config.compose import load_config
from rlkit.errors import UserError
from rlkit.model.deepseek_architecture import DeepseekArchitecture
from rlkit.plan import hardware
from rlkit.plan.here import trainer_here
from rlkit.run import machine
from rlkit.run.machine import check_machine, check_memory

Usage = namedtuple("Usage", ["total", "used", "free"])
WEIGHTS = 10**6
CONFIG = load_config("grpo", GrpoRun, ["cluster=ray", "engine=vllm"])


@pytest.fixture(autouse=True)
def short_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The test's own folder may have a long name, which TMPDIR may not."""
    monkeypatch.setenv("TMPDIR", "/tmp")
    monkeypatch.delenv("RAY_TMPDIR", raising=False)


def refused(cfg: GrpoRun, *words: str, weights: int = WEIGHTS) -> None:
    with pytest.raises(UserError) as refusal:
        check_machine(cfg, weights=weights, trained=weights)
    for word in words:
        assert word in str(refusal.value), str(refusal.value)


def disk(monkeypatch: pytest.MonkeyPatch, **free: int) -> None:
    """Says of some folders how much is free there."""

    def usage(place: str | Path) -> Usage:
        name = next((name for name in free if str(place).strip("/").replace("/", "_").startswith(name)), None)
        return Usage(10**18, 0, 10**15 if name is None else free[name])

    monkeypatch.setattr(shutil, "disk_usage", usage)


def test_a_good_machine_is_taken_and_nothing_is_left(tmp_path: Path) -> None:
    before = set(tmp_path.rglob("*"))
    check_machine(replace(CONFIG, output_dir=tmp_path / "a" / "b c"), weights=WEIGHTS, trained=WEIGHTS)
    (tmp_path / "there").mkdir()
    check_machine(replace(CONFIG, output_dir=tmp_path / "there"), weights=WEIGHTS, trained=WEIGHTS)
    assert set(tmp_path.rglob("*")) == before | {tmp_path / "there"}


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("file", "is a file, not a folder"),
        ("file/run", "cannot be written (Not a directory)"),
        ("file/deep/er", "cannot be written (Not a directory)"),
        ("loop/run", "cannot be written (Too many levels of symbolic links)"),
        ("x" * 300, "cannot be written (File name too long)"),
        ("/".join(["long" * 20] * 60), "cannot be written (File name too long)"),
        ("a\0b", "cannot be written (embedded null byte)"),
        ("/proc/run", "cannot be written (No such file or directory)"),
        ("/dev/null", "is a file, not a folder"),
        ("/sys/run", "cannot be written"),
    ],
)
def test_an_output_folder_that_cannot_be(place: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    if place == "/dev/null":
        words = "/dev/null cannot be written"  # a device is no file either
    refused(replace(CONFIG, output_dir=tmp_path / place), "output_dir=", words, "set another output_dir")
    assert {path.name for path in tmp_path.iterdir()} == {"file", "loop"}


def test_a_folder_of_somebody_else(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    tmp_path.chmod(0o555)
    refused(replace(CONFIG, output_dir=tmp_path / "run"), "cannot be written (Permission denied)")


def test_a_full_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cfg = replace(CONFIG, output_dir=tmp_path / "run")
    name = str(tmp_path).strip("/").replace("/", "_")
    needed = WEIGHTS * (4 + 12 + 4 + 4)  # the export, the optimiser, the reference, the model that it starts from
    for free in (0, 1000, needed - 1):
        disk(monkeypatch, **{name: free})
        refused(cfg, f"output_dir={tmp_path / 'run'}", "are free on its disk", "set another output_dir")
    disk(monkeypatch, **{name: needed})
    check_machine(cfg, weights=WEIGHTS, trained=WEIGHTS)
    disk(monkeypatch, **{name: 0})
    (tmp_path / "run" / "model").mkdir(parents=True)  # a complete run writes nothing but its report
    check_machine(cfg, weights=WEIGHTS, trained=WEIGHTS)


def test_a_checkpoint_of_muon_has_a_moment_less(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cfg = replace(CONFIG, output_dir=tmp_path / "run")
    needed = WEIGHTS * (4 + 12 + 4 + 4) - 4 * 600_000
    disk(monkeypatch, **{str(tmp_path).strip("/").replace("/", "_"): needed})
    refused(cfg, "are free on its disk")
    check_machine(cfg, weights=WEIGHTS, trained=WEIGHTS, orthogonal=600_000)


@pytest.mark.parametrize("variable", ["TMPDIR", "RAY_TMPDIR"])
def test_a_long_name_for_temporary_files(variable: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cfg = replace(CONFIG, output_dir=tmp_path / "run")
    for length in (39, 40, 41, 100):
        name = "/tmp/rlkit-" + "x" * (length - 11)
        monkeypatch.setenv(variable, name)
        if length == 39:
            check_machine(cfg, weights=WEIGHTS, trained=WEIGHTS)
        else:
            refused(cfg, f"{variable}={name}", f"{length + 68} bytes", f"{variable}=/tmp", "cluster=local")
        assert not Path(name).exists()


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("TMPDIR", "/proc/tmp", ["TMPDIR=/proc/tmp/ray cannot be written", "TMPDIR=/tmp", "cluster=local"]),
        ("TMPDIR", "/dev/null", ["TMPDIR=/dev/null/ray cannot be written"]),
        ("RAY_TMPDIR", "/proc/tmp", ["RAY_TMPDIR=/proc/tmp/ray cannot be written"]),
        ("TMPDIR", "/tmp/" + "ü" * 20, ["is too long a name", "113 bytes"]),
        ("HOME", "/proc/nowhere", ["HOME=/proc/nowhere/.ray cannot be written", "HOME=/tmp/home", "cluster=local"]),
        ("HOME", "/dev/null", ["HOME=/dev/null/.ray cannot be written"]),
        ("HOME", "/etc/passwd", ["HOME=/etc/passwd/.ray cannot be written"]),
    ],
)
def test_folders_that_ray_needs(
    variable: str, value: str, words: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(variable, value)
    cfg = replace(CONFIG, output_dir=tmp_path / "run")
    refused(cfg, *words)
    local = load_config("grpo", GrpoRun, ["cluster=local", "engine=torch", "trainer=torch"])
    check_machine(replace(local, output_dir=tmp_path / "run"), weights=WEIGHTS, trained=WEIGHTS)
    elsewhere = replace(cfg, cluster=replace(cfg.cluster, address="host:6379"))
    check_machine(elsewhere, weights=WEIGHTS, trained=WEIGHTS)


def test_a_home_that_cannot_be_written_does_where_ray_has_its_token(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", "/proc/nowhere")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "token")
    check_machine(replace(CONFIG, output_dir=tmp_path / "run"), weights=WEIGHTS, trained=WEIGHTS)


def test_shared_memory_for_the_object_store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cfg = replace(CONFIG, output_dir=tmp_path / "run")
    monkeypatch.setattr(hardware, "CGROUP_MEMORY", tmp_path / "none")
    monkeypatch.setattr(os, "sysconf", lambda name: 2**20)  # pages of a MiB, a TiB of memory
    small, large = 10**6, 10**9  # parameters: an object store of 0.5 GiB, and of 15 GiB
    disk(monkeypatch, dev_shm=2**26)
    check_machine(cfg, weights=small, trained=small)  # Ray puts it into its folder
    disk(monkeypatch, dev_shm=2**26, tmp=2**27)
    refused(cfg, "/dev/shm and /tmp", "docker run --shm-size=1g", "another TMPDIR", weights=small)
    disk(monkeypatch, dev_shm=2**33)
    refused(cfg, "/dev/shm: 8 GiB are free", "takes 15.4 GiB", "--shm-size=16g", weights=large)
    monkeypatch.setenv("RAY_OBJECT_STORE_ALLOW_SLOW_STORAGE", "1")
    check_machine(cfg, weights=large, trained=large)


def test_a_model_larger_than_the_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cfg = replace(CONFIG, output_dir=tmp_path / "run")
    disk(monkeypatch)
    limit = tmp_path / "memory.max"
    limit.write_text(f"{2**30}\n")
    monkeypatch.setattr(hardware, "CGROUP_MEMORY", limit)
    refused(cfg, "too large for this machine", "of 1 GiB of memory", "cluster.address", weights=10**9)
    limit.write_text("max\n")
    check_machine(cfg, weights=10**6, trained=10**6)


def test_a_run_whose_weights_and_optimiser_alone_do_not_fit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """10^6 parameters and a few: 24 bytes each in a rank, of these 4 for the reference, and 4 in an engine."""
    architecture = DeepseekArchitecture(config=CONFIG.model.architecture)
    total = architecture.size().parameters
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(hardware, "CGROUP_MEMORY", limit)

    def check(free: int, cfg: GrpoRun = CONFIG) -> None:
        limit.write_text(f"{free}\n")
        check_memory(cfg, architecture)

    check(28 * total)
    message = (
        "trainer.num_ranks=1 .trainer.dtype=fp32, trainer.zero_stage=1. and engine.num_engines=1 .* has .* GiB; use "
    )
    with pytest.raises(UserError, match=message):
        check(28 * total - 1)
    two = replace(CONFIG, trainer=replace(CONFIG.trainer, num_ranks=2))  # ZeRO divides 12 of the 24 bytes
    check((2 * 18 + 4) * total, two)
    with pytest.raises(UserError, match="'rlkit plan grpo' with the same settings"):
        check((2 * 18 + 4) * total - 1, two)
    check(1, replace(CONFIG, cluster=replace(CONFIG.cluster, address="auto")))  # a cluster's machines are not seen


@pytest.mark.parametrize(("free", "what"), [(24, ""), (23, "a trainer rank"), (3, "a trainer rank")])
def test_a_rank_that_does_not_fit_into_its_gpu(free: int, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    architecture = DeepseekArchitecture(config=CONFIG.model.architecture)
    device = namedtuple("Device", ["total_memory"])(free * architecture.size().parameters)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _index: device)
    if not what:
        check_memory(CONFIG, architecture)
        return
    with pytest.raises(UserError, match=f"{what} .trainer.dtype=fp32, trainer.zero_stage=1. needs .* its GPU has"):
        check_memory(CONFIG, architecture)


def test_workers_of_one_engine_share_its_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """With its optimiser on the CPU a rank keeps 2 bytes of each parameter on the GPU, and an engine 4."""
    trainer = replace(CONFIG.trainer, offload="all", zero_stage=3, dtype="bf16")
    cfg = replace(CONFIG, trainer=trainer)
    architecture = DeepseekArchitecture(config=CONFIG.model.architecture)
    states = trainer_here(cfg, architecture).states
    weights = 4 * architecture.size().parameters
    assert weights / 2 >= states, "else this tries nothing"
    device = namedtuple("Device", ["total_memory"])(weights // 2 + 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _index: device)
    with pytest.raises(
        UserError, match=r"an engine \(engine.dtype=fp32, engine.tensor_parallel=1\) needs .* each GPU has"
    ):
        check_memory(cfg, architecture)
    check_memory(replace(cfg, engine=replace(cfg.engine, tensor_parallel=2)), architecture)


def test_a_share_of_the_gpu_is_no_number_of_gigabytes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cfg = replace(CONFIG, output_dir=tmp_path / "run", engine=replace(CONFIG.engine, memory=8.0))
    check_machine(cfg, weights=WEIGHTS, trained=WEIGHTS)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    refused(cfg, "engine.memory=8", "share", "as 0.5")


def test_a_package_that_is_not_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cfg = replace(CONFIG, output_dir=tmp_path / "run", logging=replace(CONFIG.logging, wandb_project="mine"))
    monkeypatch.setattr(machine, "find_spec", lambda name: None)
    refused(cfg, "logging.wandb_project='mine'", "install it, or leave the key empty")
    monkeypatch.setattr(machine, "find_spec", lambda name: name)
    check_machine(cfg, weights=WEIGHTS, trained=WEIGHTS)


@pytest.mark.parametrize("place", ["file", "file/run"])
def test_a_dry_run_says_it_too(place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    local = ["cluster=local", "engine=torch", "trainer=torch", "data.train_size=50", "data.eval_size=20"]
    for flag in (["dry_run=true"], []):
        with pytest.raises(SystemExit) as leaving:
            grpo.main([*local, f"output_dir={tmp_path / place}", *flag])
        assert leaving.value.code == 2
        printed = capsys.readouterr()
        assert (
            printed.err.startswith(f"error: output_dir={tmp_path / place}") and "nothing was started" not in printed.out
        )
