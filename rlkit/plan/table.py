"""A plan as text: what a person reads on the terminal. 1 GB = 10^9 bytes, as makers of GPUs count."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby

from rlkit.plan.cost import Cost
from rlkit.plan.hardware import Hardware
from rlkit.plan.plan import EnginePlan, Plan
from rlkit.plan.ranks import SHARE_FOR_LIBRARIES, Fit
from rlkit.plan.rehearse import RankShare, Rehearsal
from rlkit.plan.sync import SyncBytes

UNITS = ((10**12, "TB"), (10**9, "GB"), (10**6, "MB"), (10**3, "kB"))
SHOWN_OPTIONS = 8
Row = tuple[str, ...]


def amount(nbytes: float) -> str:
    """Returns bytes in words: 26.9 GB."""
    for size, unit in UNITS:
        if nbytes >= size:
            return f"{nbytes / size:,.1f} {unit}" if size < 10**12 else f"{nbytes / size:,.2f} {unit}"
    return f"{nbytes:.0f} B"


def lines(plan: Plan) -> Iterator[str]:
    """Yields the lines of the whole table."""
    yield f"plan of {plan.recipe} on {_hardware(plan.hardware)}"
    yield f"  {plan.hardware.source}"
    yield from _section("model", _model(plan))
    yield from _section(_trainer_title(plan), _trainer(plan))
    if plan.engine is not None:
        yield from _section(_engine_title(plan.engine), _engine(plan.engine, plan))
    if plan.sync is not None:
        yield from _section("a sync of all weights, in main memory", _sync(plan.sync))
    yield from _section("layouts of the trainer on as many devices, the leanest first", _options(plan.options))
    yield from _section("the fewest nodes, with recomputation", _smallest(plan))
    yield from _section("floor of one step", _phases(plan))
    yield from _section(f"cost at ${plan.cost.price:g} for an hour of a device", _cost(plan.cost))
    if plan.published_cost is not None:
        yield from _section("cost of the published run", _cost(plan.published_cost))
    if plan.rehearsal is not None:
        yield from _section("rehearsal", _rehearsal(plan.rehearsal))


def _section(title: str, rows: Sequence[Row]) -> Iterator[str]:
    yield ""
    yield title
    # The last cell of a row is text that may run on; it makes no column wider.
    columns = range(max(map(len, rows)))
    widths = [max((len(row[place]) for row in rows if len(row) > place + 1), default=0) for place in columns]
    for row in rows:
        cells = [cell if place + 1 == len(row) else f"{cell:<{widths[place]}}" for place, cell in enumerate(row)]
        yield "  " + "  ".join(cells).rstrip()


def _hardware(found: Hardware) -> str:
    kind = "CPU" if found.is_cpu else "GPUs"
    speed = f"{found.bf16 / 1e12:,.3g} TFLOP/s" + ("" if found.is_cpu else f" bf16, {found.fp8 / 1e12:,.5g} FP8")
    node = f"{found.per_node} x {amount(found.memory)} of {kind} a node"
    return f"{found.name}: {node}, {speed}, {amount(found.memory_bandwidth)}/s"


def _model(plan: Plan) -> list[Row]:
    model = plan.model
    active = f"{model.active / 1e9:.1f} B" if model.active >= 10**9 else f"{model.active:,}"
    rows = [("parameters", f"{model.parameters:,}, {active} of them active on a token")]
    if model.mtp:
        rows.append(("", f"plus {model.mtp:,} in modules for multi-token prediction"))
    told = f"{model.cache_numbers} numbers per token and layer, {model.cache_bytes:,} bytes a token"
    rows.append((model.cache_name, told))
    if model.fp8_bytes is None:
        rows.append(("checkpoint", f"{amount(model.bf16_bytes)} in bf16"))
    else:
        told = f"{amount(model.fp8_bytes)} in FP8 with scales, {amount(model.bf16_bytes)} in bf16"
        rows.append(("checkpoint", told))
    return rows


def _trainer_title(plan: Plan) -> str:
    layout = plan.trainer.layout
    nodes = -(-layout.ranks // plan.hardware.per_node)
    where = "" if plan.hardware.is_cpu else f" on {nodes:,} node{'s' * (nodes > 1)}"
    return f"trainer: {layout.ranks:,} rank{'s' * (layout.ranks > 1)}{where}, {layout}; the fullest rank"


def _trainer(plan: Plan) -> list[Row]:
    needs, layout = plan.trainer.needs, plan.trainer.layout
    other = "without" if layout.recompute else "with"
    rows = [
        ("weights", amount(needs.weights), ""),
        ("gradients", amount(needs.gradients), "in main memory" if layout.offload != "none" else "fp32"),
        ("optimiser", amount(needs.optimiser), f"{amount(needs.host)} a rank in main memory" if needs.host else ""),
        ("reference", amount(needs.reference), "" if needs.reference else "none"),
        ("activations", amount(needs.activations), f"{amount(plan.whole.activations)} {other} recomputation"),
        ("logits", amount(needs.logits), "of one chunk"),
        ("buckets", amount(needs.bucket + needs.gathered), "gradients on their way; ZeRO-3's gathered blocks"),
        ("step", amount(needs.step), "beside the gradients, when no activation is left"),
        ("peak", amount(needs.peak), _verdict(plan.trainer.fits, plan)),
    ]
    return rows


def _verdict(fits: bool, plan: Plan) -> str:
    if plan.on_this_cpu is not None:
        fits = plan.on_this_cpu <= plan.hardware.memory
        return f"all parts: {amount(plan.on_this_cpu)}; this machine has {amount(plan.hardware.memory)}: {_yes(fits)}"
    free = f"{amount(plan.room)}, {1 - SHARE_FOR_LIBRARIES:.0%} of a device"
    return f"{_yes(fits)} into {free}"


def _devices(number: int) -> str:
    return f"{number:,} device{'s' * (number > 1)}"


def _yes(fits: bool) -> str:
    return "fits" if fits else "DOES NOT FIT"


def _engine_title(engine: EnginePlan) -> str:
    layout = engine.layout
    name = f"TP{layout.tensor_parallel} DP{layout.data_parallel}" + f" EP{layout.gpus}" * layout.expert_parallel
    extra = f", {layout.redundant_experts} redundant experts" if layout.redundant_experts else ""
    return f"engine: {engine.engines} of {_devices(layout.gpus)}, {name}{extra}, {engine.dtype}; the fullest device"


def _engine(engine: EnginePlan, plan: Plan) -> list[Row]:
    needs, layout = engine.needs, engine.layout
    rows = [("weights", amount(needs.weights), "")]
    if layout.expert_parallel:
        rows[0] = ("weights", amount(needs.weights), f"{layout.experts_per_gpu(plan.model.experts):g} experts a layer")
    rows += [
        ("cache", amount(needs.cache), "of all sequences at their full length"),
        ("logits", amount(needs.logits), ""),
        ("peak", amount(needs.peak), _verdict(engine.fits, plan)),
    ]
    return rows


def _sync(sync: SyncBytes) -> list[Row]:
    rows = [
        ("published", amount(sync.published), f"in the form {sync.form!r}, by all ranks together"),
        ("a rank", amount(sync.share), "in Ray's store until every engine has loaded"),
        ("", amount(sync.piece), "a piece on its way there"),
        ("an engine", amount(sync.engine), "the piece that it loads, and the next"),
    ]
    return rows + ([("", amount(sync.workers), "shared with its workers")] if sync.workers else [])


def _options(found: Sequence[Fit]) -> list[Row]:
    rows: list[Row] = [("layout", "peak", "in main memory", "")]
    for option in found[:SHOWN_OPTIONS]:
        host = amount(option.needs.host) if option.needs.host else "-"
        rows.append((str(option.layout), amount(option.needs.peak), host, _yes(option.fits)))
    return rows


def _smallest(plan: Plan) -> list[Row]:
    small, per_node = plan.smallest, plan.hardware.per_node
    rows: list[Row] = []
    for label, nodes, found in (
        ("trainer", small.nodes, small.trainer),
        ("trainer, optimiser in main memory", small.offload_nodes, small.offload),
    ):
        if nodes is None or found is None:
            rows.append((label, "none within reach", ""))
            continue
        told = f"{_devices(nodes * per_node)}, {found.layout}, {amount(found.needs.peak)} a rank"
        told += f", {amount(found.needs.host * per_node)} a node" if found.needs.host else ""
        rows.append((label, f"{nodes:,}", told))
    if small.engine is not None:
        layout = small.engine
        nodes = -(-layout.gpus // per_node)
        experts = f" EP{layout.gpus}" if layout.expert_parallel else ""
        rows.append(("engine", f"{nodes:,}", f"{_devices(layout.gpus)}, TP{layout.tensor_parallel}{experts}"))
    elif plan.engine is not None:
        rows.append(("engine", "none within reach", ""))
    return rows


def _phases(plan: Plan) -> list[Row]:
    rows: list[Row] = [("phase", "FLOPs", "seconds", "if")]
    for phase in plan.phases:
        flops = f"{phase.flops:.2e}" if phase.flops else "-"
        rows.append((phase.name, flops, f"{phase.seconds:,.3g}", phase.assumption))
    rows.append(("all", "", f"{sum(phase.seconds for phase in plan.phases):,.3g}", "one phase after the other"))
    return rows


def _cost(cost: Cost) -> list[Row]:
    rows: list[Row] = [("stage", "device-hours", "dollars", "from")]
    for stage in cost.stages:
        rows.append((stage.name, _figure(stage.hours), _figure(stage.hours * cost.price), stage.reckoning))
    if len(cost.stages) > 1:
        rows.append(("all", _figure(cost.hours), _figure(cost.dollars), ""))
    return rows


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}"


def _rehearsal(found: Rehearsal) -> list[Row]:
    """A row for every stage: its ranks differ by a few tensors, and `--json` has them all."""
    rows: list[Row] = [
        ("union", f"{found.tensors:,} tensors, {amount(found.nbytes)}: the published index, each just once"),
        ("stage", "ranks", "tensors a rank", "weights", "gradients", "optimiser", "hands out"),
    ]
    for stage, group in groupby(sorted(found.ranks, key=lambda share: share.stage), key=lambda share: share.stage):
        ranks = list(group)
        rows.append(
            (
                f"{stage}",
                f"{min(share.rank for share in ranks)}-{max(share.rank for share in ranks)}",
                _span([share.tensors for share in ranks], "{:,}".format),
                *(_bytes_of(ranks, key) for key in ("weights", "gradients", "optimiser", "published")),
            )
        )
    return rows


def _bytes_of(ranks: Sequence[RankShare], key: str) -> str:
    return _span([getattr(share, key) for share in ranks], amount)


def _span(values: Sequence[int], show: Callable[[int], str]) -> str:
    low, high = show(min(values)), show(max(values))
    return low if low == high else f"{low} to {high}"
