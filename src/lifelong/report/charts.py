"""The charts of a report, by plotly: they work offline and under a finger."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lifelong.report.accuracies import retention
from lifelong.report.groups import Group, families, new_test, old_test
from lifelong.report.names import axis_names, old_name
from lifelong.report.numbers import Mean, as_typed, mean_of
from lifelong.report.palette import styles

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


def lambda_chart(groups: Sequence[Group]) -> "Figure":
    """λ against the test accuracy on the old and on the new task.

    λ = 0 has its own place at the left end of the logarithmic axis. What has no λ is drawn as a
    line across.

    Args:
        groups: the points.

    Returns:
        A solid curve for the old task, their mean where several are old, and a dotted one for the
        new task of each family.
    """
    figure = _figure("λ", "accuracy, % of test images")
    tasks = groups[0].summaries[0].tasks
    lambdas = sorted({g.ewc_lambda for g in groups if g.has_lambda})
    places = _places(lambdas)
    looks = styles(families(groups))
    for family, same in families(groups).items():
        colour, symbol = looks[family].colour, looks[family].symbol
        for name, pick, dash, ending in (
            (old_name(tasks), old_test, "solid", ""),
            (tasks[-1], new_test, "dot", "-open"),
        ):
            means = [group.mean(pick) for group in same]
            label = f"{name}, {family}"
            if not same[0].has_lambda:
                xs = [places[lambdas[0]], places[lambdas[-1]]]
                means = [means[0], means[0]]
                text, mode = [family, family], "lines"
            else:
                xs = [places[group.ewc_lambda] for group in same]
                text, mode = [f"λ = {as_typed(g.ewc_lambda)}" for g in same], "lines+markers"
            figure.add_scatter(
                x=xs,
                y=[mean.value for mean in means],
                error_y=_errors(means) if mode != "lines" else None,
                text=text,
                mode=mode,
                name=label,
                line={"color": colour, "dash": dash, "width": 2 if mode != "lines" else 1},
                marker={"symbol": symbol + ending, "size": 9, "color": colour},
                hovertemplate="%{text}: %{y:.2f} %<extra>" + label + "</extra>",
            )
    figure.update_xaxes(
        tickvals=[places[x] for x in lambdas], ticktext=[as_typed(x) for x in lambdas]
    )
    return figure


def trade_off_chart(groups: Sequence[Group]) -> "Figure":
    """The old task's test accuracy against the new one's; the upper right corner has both.

    Args:
        groups: the points.

    Returns:
        A curve over λ for each family; methods without λ are points of their own.
    """
    tasks = groups[0].summaries[0].tasks
    old_axis, new_axis = axis_names(tasks)
    figure = _figure(f"{new_axis}, % of test images", f"{old_axis}, % of test images")
    looks = styles(families(groups))
    for family, same in families(groups).items():
        colour, symbol = looks[family].colour, looks[family].symbol
        old, new = ([group.mean(pick) for group in same] for pick in (old_test, new_test))
        several = len(same) > 1
        lambdas = [as_typed(group.ewc_lambda) for group in same]
        figure.add_scatter(
            x=[mean.value for mean in new],
            y=[mean.value for mean in old],
            error_x=_errors(new),
            error_y=_errors(old),
            mode="lines+markers+text" if several else "markers",
            text=lambdas,
            textposition="bottom left",
            textfont={"color": colour},
            name=f"{family}, at each λ" if several else same[0].label,
            line={"color": colour, "width": 1.5},
            marker={"symbol": symbol, "size": 11, "color": colour},
            hovertemplate=f"{old_name(tasks)} %{{y:.2f}} %, {tasks[-1]} %{{x:.2f}} %"
            + ("<br>λ = %{text}" if several else "")
            + f"<extra>{family}</extra>",
        )
    return figure


def retention_chart(groups: Sequence[Group]) -> "Figure":
    """The accuracy on the old task's validation images while the last task is learnt.

    Args:
        groups: the curves to draw; over seeds the mean, with the standard error as bars.

    Returns:
        The figure; where several tasks are old, of the mean over them.
    """
    tasks = groups[0].summaries[0].tasks
    figure = _figure(f"epochs of {tasks[-1]}", f"{old_name(tasks)}, % of validation images")
    several, looks = _shades(groups), styles(families(groups))
    longest = 0
    for group in groups:
        colour, symbol = looks[group.family].colour, looks[group.family].symbol
        colour = several.get(id(group), colour)
        curves = [retention(summary) for summary in group.summaries]
        length = min(map(len, curves))
        longest = max(longest, length)
        means = [mean_of([curve[i] for curve in curves]) for i in range(length)]
        figure.add_scatter(
            x=list(range(length)),
            y=[mean.value for mean in means],
            error_y=_errors(means),
            mode="lines+markers",
            name=group.label,
            line={"color": colour, "width": 2},
            marker={"symbol": symbol, "size": 7, "color": colour},
            hovertemplate="epoch %{x}: %{y:.2f} %<extra>" + group.label + "</extra>",
        )
    figure.update_xaxes(dtick=max(1, longest // 10))
    return figure


def matrix_chart(group: Group) -> "Figure":
    """The accuracy matrix, mean over seeds: row i after task i, column j on task j's test images.

    Args:
        group: the runs.

    Returns:
        The figure, with the numbers in it.
    """
    tasks = group.summaries[0].tasks
    size = range(len(tasks))
    means = [[_entry(group, i, j) for j in size] for i in size]
    figure = _figure("", "")
    figure.add_heatmap(
        z=[[mean.value for mean in row] for row in means],
        x=[f"on {task}" for task in tasks],
        y=[f"after {task}" for task in tasks],
        text=[[str(mean) for mean in row] for row in means],
        texttemplate="%{text}",
        hovertemplate="%{y}, %{x}: %{text} %<extra></extra>",
        colorscale="Cividis",
        zmin=0,
        zmax=100,
        showscale=False,
    )
    figure.update_yaxes(autorange="reversed")
    figure.update_layout(title={"text": group.label, "font": {"size": 14}}, height=300)
    figure.update_layout(margin={"t": 40, "l": 10, "r": 10, "b": 10})
    return figure


def _figure(x: str, y: str) -> "Figure":
    from plotly.graph_objects import Figure

    figure = Figure()
    figure.update_layout(
        template="simple_white",
        height=440,
        margin={"t": 10, "l": 10, "r": 10, "b": 10},
        font={"size": 13},
        legend={"orientation": "h", "yanchor": "top", "y": -0.18, "x": 0},
        xaxis={"title": x, "automargin": True, "showgrid": True},
        yaxis={"title": y, "automargin": True, "showgrid": True},
    )
    return figure


def _entry(group: Group, after: int, on: int) -> Mean:
    return group.mean(lambda summary: summary.accuracy[after][on])


def _shades(groups: Sequence[Group]) -> dict[int, str]:
    # Several λ of one family get the shades of one scale, dark for small λ.
    from plotly.colors import sample_colorscale

    found: dict[int, str] = {}
    for same in families(groups).values():
        if len(same) > 1:
            points = [0.9 * i / (len(same) - 1) for i in range(len(same))]
            colours = sample_colorscale("Cividis", points)
            found |= {id(g): colour for g, colour in zip(same, colours, strict=True)}
    return found


def _places(lambdas: Sequence[float]) -> dict[float, float]:
    logarithms = {x: math.log10(x) for x in lambdas if x > 0}
    return {0.0: min(logarithms.values(), default=1.0) - 1} | logarithms


def _errors(means: Sequence[Mean]) -> dict[str, Any]:
    return {"type": "data", "array": [mean.error for mean in means], "thickness": 1, "width": 3}
