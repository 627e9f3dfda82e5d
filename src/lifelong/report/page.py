"""The report as one HTML file that needs no network."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lifelong.report.best import Rule, verdict
from lifelong.report.charts import lambda_chart, matrix_chart, retention_chart, trade_off_chart
from lifelong.report.groups import Group, chosen, families, group_runs
from lifelong.report.names import mean_of_old, old_name, title
from lifelong.report.results import Forgotten, ForgottenImage, Results
from lifelong.report.tables import as_csv, as_markdown

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

TEMPLATE = Path(__file__).with_name("page.html")
SHOWN = 16  # forgotten images of a run


@dataclass(frozen=True)
class Report:
    """What a report says, in three forms.

    Args:
        html: the page.
        markdown: its table.
        csv: its table, unrounded.
    """

    html: str
    markdown: str
    csv: str


def make_report(results: Results, rule: Rule) -> Report:
    """Make the report of all runs below a folder.

    Args:
        results: the runs.
        rule: chooses the λ that is marked, on validation images alone.

    Returns:
        The page and its table.
    """
    from jinja2 import Environment, StrictUndefined
    from plotly.offline import get_plotlyjs

    groups = group_runs(results.runs)
    first = results.runs[0].summary
    tasks = first.tasks
    several = len(tasks) > 1
    best = chosen(groups, rule) if several else groups
    markdown, csv = as_markdown(groups), as_csv(groups)
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    swept = _swept(groups)
    html = template.render(
        title=title(first),
        embedded="embedded" in title(first),
        sources=first.data_source,
        runs=len(results.runs),
        folder=results.directory.resolve().name,
        versions=first.versions,
        parameters=first.parameters,
        notes=results.notes,
        old=old_name(tasks),
        new=tasks[-1],
        old_mean=mean_of_old(len(tasks) - 1),
        verdicts=_verdicts(groups, rule) if several else [],
        plotly=get_plotlyjs(),
        lambda_chart=_html(lambda_chart(groups), "lambda") if swept else None,
        trade_off=_html(trade_off_chart(groups), "trade-off") if several else None,
        retention=_html(retention_chart(groups), "retention") if several else None,
        matrices=[_html(matrix_chart(one), f"matrix-{i}") for i, one in enumerate(best)],
        forgotten=_forgotten(best),
        rows=_rows(groups, best),
        markdown=markdown,
        csv=csv,
        commands=[(group.label, group.command) for group in groups],
    )
    return Report(html, markdown, csv)


def _swept(groups: Sequence[Group]) -> bool:
    several = len(groups[0].summaries[0].tasks) > 1
    return several and any(len(same) > 1 for same in families(groups).values())


def _verdicts(groups: Sequence[Group], rule: Rule) -> list[str]:
    sentences = []
    for family, same in families(groups).items():
        if len(same) > 1:
            best = rule.choose(group.candidate for group in same)
            sentences.append(f"{family}: {verdict(best, rule)}")
    return sentences


def _rows(groups: Sequence[Group], best: Sequence[Group]) -> list[dict[str, Any]]:
    swept = {family for family, same in families(groups).items() if len(same) > 1}
    return [
        {
            "family": group.family,
            "lambda": group.lambda_cell,
            "seeds": ", ".join(map(str, group.seeds)),
            "figures": group.figures,
            "best": group in best and group.family in swept,
        }
        for group in groups
    ]


def _forgotten(groups: Sequence[Group]) -> list[dict[str, Any]]:
    panels = []
    for group in groups:
        run = next((run for run in group.runs if run.forgotten), None)
        if run is not None:
            panels += [_panel(group, run.summary.seed, one) for one in run.forgotten]
    return panels


def _panel(group: Group, seed: int, forgotten: Forgotten) -> dict[str, Any]:
    some = forgotten.images[:: max(1, len(forgotten.images) // SHOWN)][:SHOWN]
    return {
        "label": group.label,
        "seed": seed,
        "task": forgotten.task,
        "count": forgotten.count,
        "images": [{"about": one, "source": _source(one)} for one in some],
    }


def _source(one: ForgottenImage) -> str:
    from PIL import Image, ImageOps

    height, width = one.shape
    picture = ImageOps.invert(Image.frombytes("L", (width, height), one.pixels))
    written = io.BytesIO()
    picture.save(written, "PNG")
    return "data:image/png;base64," + base64.b64encode(written.getvalue()).decode()


def _html(figure: "Figure", name: str) -> str:
    return figure.to_html(
        full_html=False,
        include_plotlyjs=False,
        div_id=name,
        config={"responsive": True, "displaylogo": False, "displayModeBar": False},
    )
