"""How the loop turns: champions, retrainings, and whether the services follow."""

from grafana_foundation_sdk.models.dashboard import Dashboard

from infra.grafana.panels import dashboard, graph, number, timeline, variable

OF = 'model=~"$model"'
SINCE = f"time() - max by (model) (captionloop_champion_timestamp_seconds{{{OF}}})"
ENDED = f"max by (model, outcome) (captionloop_retraining_last_timestamp_seconds{{{OF}}})"


def loop() -> Dashboard:
    return dashboard(
        "captionloop-loop",
        "Captioner: loop",
        "Champions, retrainings and the alerts that fire.",
        [
            variable(
                "model", "Model", "label_values(captionloop_champion_timestamp_seconds, model)"
            ),
            variable(
                "instance",
                "Instance",
                'label_values(captioner_model_info{name=~"$model"}, instance)',
            ),
        ],
        {
            "Now": [
                number(
                    "Champion since",
                    "s",
                    "Age of the champion; red after 90 days.",
                    (SINCE, "{{model}}"),
                    bad=90 * 86400,
                ),
                number(
                    "Last retraining by outcome",
                    "s",
                    "Time since one ended so. Labels wanted: a labelling batch waits for answers.",
                    (f"time() - ({ENDED} > 0)", "{{model}}: {{outcome}}"),
                ),
                number(
                    "Alerts that fire",
                    "short",
                    "By severity; infra/RUNBOOK.md says of each what to do.",
                    (
                        'count by (severity) (ALERTS{alertstate="firing"})',
                        "{{severity}}",
                    ),
                    bad=1,
                ),
            ],
            "Champions": [
                timeline(
                    "Champion",
                    "Which version the registry names champion.",
                    (
                        "captionloop_champion_timestamp_seconds{" + OF + "} > bool 0",
                        "{{model}} {{version}}",
                    ),
                ),
                timeline(
                    "Version that answers",
                    "What the services answer with: they follow within seconds of a promotion.",
                    (
                        'max by (name, version) (captioner_model_info{name=~"$model", '
                        'instance=~"$instance"})',
                        "{{name}} {{version}}",
                    ),
                ),
            ],
            "Retrainings": [
                timeline(
                    "Outcome of the last retraining",
                    "Promoted, rejected by the gate, failed, or not started for want of labels.",
                    (
                        f"{ENDED} == bool on (model) group_left () max by (model) ({ENDED})",
                        "{{model}}: {{outcome}}",
                    ),
                ),
                timeline(
                    "Drift",
                    "What the retrainings answer to.",
                    (
                        f'max by (model) (captionloop_drift_verdict{{verdict="drift", {OF}}})',
                        "{{model}}",
                    ),
                ),
                graph(
                    "Corrections in a day",
                    "short",
                    "Too few of them, and drift starts no retraining but a labelling batch.",
                    ("sum(increase(captioner_feedback_total[1d]))", "corrections"),
                ),
            ],
            "Alerts": [
                timeline(
                    "Alerts",
                    "Which fired when.",
                    (
                        'max by (alertname, severity) (ALERTS{alertstate="firing"})',
                        "{{severity}}: {{alertname}}",
                    ),
                ),
            ],
        },
    )
