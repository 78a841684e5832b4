"""The kinds of panels that our dashboards are made of, and a dashboard of rows of them."""

from collections.abc import Sequence
from string import ascii_uppercase
from typing import TypeVar

from grafana_foundation_sdk.builders import common, stat, statetimeline, timeseries
from grafana_foundation_sdk.builders.dashboard import (
    AnnotationQuery,
    Dashboard,
    DashboardLink,
    DatasourceVariable,
    QueryVariable,
    Row,
    ThresholdsConfig,
)
from grafana_foundation_sdk.builders.prometheus import Dataquery
from grafana_foundation_sdk.models import common as options
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DashboardLinkType,
    DataSourceRef,
    Threshold,
    ValueMap,
    ValueMappingResult,
    VariableOption,
    VariableRefresh,
)

PROMETHEUS = DataSourceRef(type_val="prometheus", uid="${datasource}")
TAG = "captionloop"
WIDTH = 24
CHAMPION_SINCE = "time() - captionloop_champion_timestamp_seconds < 300"
DRIFT = 'max by (model) (captionloop_drift_verdict{verdict="drift"}) == 1'
Panel = stat.Panel | statetimeline.Panel | timeseries.Panel
AnyPanel = TypeVar("AnyPanel", stat.Panel, statetimeline.Panel, timeseries.Panel)
# An expression and its legend.
Query = tuple[str, str]


def number(
    title: str, unit: str, description: str, *queries: Query, bad: float | None = None
) -> stat.Panel:
    """What is now, in large; red from `bad` on."""
    panel = (
        stat.Panel()
        .text_mode(options.BigValueTextMode.AUTO)
        .color_mode(options.BigValueColorMode.VALUE)
        .graph_mode(options.BigValueGraphMode.NONE)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .thresholds(_thresholds(bad))
    )
    return _described(panel, title, unit, description, queries, 4)


def graph(
    title: str,
    unit: str,
    description: str,
    *queries: Query,
    bad: float | None = None,
    logarithmic: bool = False,
) -> timeseries.Panel:
    """How it went over time; a red line at `bad`."""
    panel = (
        timeseries.Panel()
        .legend(
            common.VizLegendOptions()
            .show_legend(True)
            .display_mode(options.LegendDisplayMode.TABLE)
            .placement(options.LegendPlacement.BOTTOM)
            .calcs(["lastNotNull", "max"])
        )
        .tooltip(common.VizTooltipOptions().mode(options.TooltipDisplayMode.MULTI))
        .fill_opacity(8)
        .thresholds(_thresholds(bad))
    )
    if bad is not None:
        line = common.GraphThresholdsStyleConfig().mode(options.GraphThresholdsStyleMode.LINE)
        panel.thresholds_style(line)
    if logarithmic:
        scale = common.ScaleDistributionConfig().type(options.ScaleDistribution.LOG).log(10)
        panel.scale_distribution(scale)
    return _described(panel, title, unit, description, queries, 8)


def timeline(title: str, description: str, *queries: Query) -> statetimeline.Panel:
    """When it held, one bar a series: only the values 1 are shown."""
    panel = (
        statetimeline.Panel()
        .show_value(options.VisibilityMode.NEVER)
        .merge_values(True)
        .legend(common.VizLegendOptions().show_legend(False))
        .mappings(
            [
                ValueMap({"0": ValueMappingResult(text="no", color="transparent")}),
                ValueMap({"1": ValueMappingResult(text="yes", color="blue")}),
            ]
        )
    )
    return _described(panel, title, "short", description, queries, 8)


def dashboard(
    uid: str,
    title: str,
    description: str,
    variables: Sequence[QueryVariable],
    rows: dict[str, Sequence[Panel]],
) -> models.Dashboard:
    """A dashboard of rows, in each of which the panels share the width."""
    made = (
        Dashboard(title)
        .uid(uid)
        .description(description)
        .tags([TAG])
        .timezone("browser")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .time("now-24h", "now")
        .refresh("1m")
        .link(DashboardLink("captionloop").type(DashboardLinkType.DASHBOARDS).tags([TAG]))
        .annotation(_mark("New champion", "green", CHAMPION_SINCE))
        .annotation(_mark("Drift", "red", DRIFT))
        .with_variable(DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
    )
    for variable in variables:
        made.with_variable(variable)
    panel_id = 1
    for name, panels in rows.items():
        made.with_row(Row(name).id(panel_id))
        for panel in panels:
            panel_id += 1
            made.with_panel(panel.id(panel_id).span(WIDTH // len(panels)))
        panel_id += 1
    built = made.build()
    for one in built.templating.list_val or []:
        # Only variables of the type `interval` have these; the SDK writes them for all.
        one.auto = one.auto_min = one.auto_count = None
    return built


def variable(name: str, label: str, query: str) -> QueryVariable:
    """Values of a label to choose from, all of them at first."""
    return (
        QueryVariable(name)
        .label(label)
        .datasource(PROMETHEUS)
        .query(query)
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current(VariableOption(text="All", value="$__all"))
    )


def _described(
    panel: AnyPanel, title: str, unit: str, description: str, queries: Sequence[Query], height: int
) -> AnyPanel:
    panel.title(title).description(description).unit(unit).datasource(PROMETHEUS).height(height)
    for letter, (expression, legend) in zip(ascii_uppercase, queries, strict=False):
        query = Dataquery().ref_id(letter).datasource(PROMETHEUS)
        panel.with_target(query.expr(expression).legend_format(legend))
    return panel


def _thresholds(bad: float | None) -> ThresholdsConfig:
    steps = [Threshold(color="green")]
    if bad is not None:
        steps.append(Threshold(value=bad, color="red"))
    return ThresholdsConfig().steps(steps)


def _mark(name: str, colour: str, expression: str) -> AnnotationQuery:
    mark = AnnotationQuery().name(name).datasource(PROMETHEUS).enable(True)
    return mark.icon_color(colour).expr(expression)
