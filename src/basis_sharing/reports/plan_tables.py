"""Tables about plans: what one expects, and how two differ."""

from math import exp

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from basis_sharing.plans.plan import Plan
from basis_sharing.reports.tables import expectation
from basis_sharing.results.forecast import Forecast
from basis_sharing.runtime.format_basis_sharing import Entry


def forecast_table(forecast: Forecast) -> RenderableType:
    """Return the expected perplexity of every method at every ratio, and what the plan consists of."""
    prediction = forecast.plan.prediction
    assert prediction is not None
    scale = 1.0 if prediction.scale is None else prediction.scale
    methods = list(dict.fromkeys(point.method for point in forecast.points))
    ratios = list(dict.fromkeys(round(point.ratio, 2) for point in forecast.points if point.method == methods[0]))
    table = Table(
        box=box.SIMPLE_HEAD,
        title="Expected perplexity, multiple of the original's (in brackets: multiplications per token)",
        title_justify="left",
    )
    table.add_column("removed", justify="right")
    for method in methods:
        table.add_column(method, justify="right", no_wrap=True)
    for ratio in ratios:
        cells = []
        for method in methods:
            near = [p for p in forecast.points if p.method == method and abs(p.ratio - ratio) < 0.03]
            cells.append(_cell(near[0].loss * scale, near[0].multiplications, forecast) if near else "-")
        table.add_row(f"{ratio:.0%}", *cells)
    return Group(table, *plan_summary(forecast))


def plan_summary(forecast: Forecast) -> list[Text]:
    """Return what the plan consists of, in a few lines."""
    plan, prediction = forecast.plan, forecast.plan.prediction
    assert prediction is not None
    across_depth = [g for g in plan.entries if len({_block(m) for m in g.members}) > 1]
    across_roles = [g for g in plan.entries if len(g.members) > len({_block(m) for m in g.members})]
    lines = [
        f"the plan removes {plan.ratio:.2%} of the compressible parameters; {len(plan.entries)} groups, of which "
        f"{len(across_depth)} share across layers and {len(across_roles)} across roles",
        expectation(prediction),
    ]
    if forecast.unshared_loss is not None:
        gain = forecast.unshared_loss / prediction.loss - 1
        lines.append(f"without sharing across layers the expected loss would be {gain:.1%} higher in the same size")
    if prediction.scale is None:
        lines.append("--evaluate TEXT measures the plan once and scales the expectation by what is true")
    if forecast.unrounded_loss is not None:
        price = prediction.loss - forecast.unrounded_loss
        lines.append(f"the rank multiple costs {price:.4f} nats per token (before scaling) in the same size")
    if not plan.gradients:
        lines.append("planned without gradients: the expectation is coarser, and the result usually worse")
    return [Text(f"  {line}") for line in lines]


def diff_table(first: Plan, second: Plan, names: tuple[str, str]) -> RenderableType:
    """Return the projections whose group, rank or form differ between two plans."""
    ours, theirs = _by_projection(first), _by_projection(second)
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("projection", overflow="fold")
    for name in names:
        table.add_column(name, justify="right")
    changed = 0
    for projection in sorted(ours.keys() | theirs.keys(), key=_natural):
        left, right = ours.get(projection), theirs.get(projection)
        if _told(left, projection) != _told(right, projection):
            changed += 1
            table.add_row(projection, _told(left, projection), _told(right, projection))
    head = Table(box=box.SIMPLE_HEAD)
    head.add_column("")
    for name in names:
        head.add_column(name, justify="right")
    head.add_row("method", first.method, second.method)
    head.add_row("removed", f"{first.ratio:.2%}", f"{second.ratio:.2%}")
    head.add_row("groups", str(len(first.entries)), str(len(second.entries)))
    head.add_row("expected nats per token", *(_expected(plan) for plan in (first, second)))
    if not changed:
        return Group(head, Text("  both plans treat every projection alike"))
    return Group(head, table, Text(f"  {changed} projections are treated differently"))


def _cell(loss: float, multiplications: int, forecast: Forecast) -> str:
    expected = f"{exp(loss):.2f}" if loss < 4.6 else "> 100"
    return f"{expected} ({multiplications / forecast.dense_multiplications:.2f})"


def _expected(plan: Plan) -> str:
    return "-" if plan.prediction is None else f"{plan.prediction.nats_per_token:.4f}"


def _by_projection(plan: Plan) -> dict[str, Entry]:
    return {name: group for group in plan.entries for name in group.members}


def _told(group: Entry | None, projection: str) -> str:
    if group is None:
        return "dense"
    others = [name for name in group.members if name != projection]
    return group.title + (f", with {', '.join(map(_short, others))}" if others else "")


def _short(name: str) -> str:
    return f"{_block(name)}.{name.rpartition('.')[2]}"


def _block(name: str) -> str:
    return next((part for part in name.split(".") if part.isdigit()), "")


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")]
