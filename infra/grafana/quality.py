"""Whether what is asked is still what the model was judged on, and how good it is at it."""

from grafana_foundation_sdk.models.dashboard import Dashboard

from infra.grafana.panels import dashboard, graph, number, timeline, variable

OF = 'model=~"$model"'


def quality() -> Dashboard:
    return dashboard(
        "captionloop-quality",
        "Captioner: quality and drift",
        "What the monitor's checks found: verdicts, features, and CIDEr.",
        [
            variable(
                "model",
                "Model",
                "label_values(captionloop_drift_last_check_timestamp_seconds, model)",
            )
        ],
        {
            "Now": [
                number(
                    "Drift",
                    "bool_yes_no",
                    "Whether the last check found drift.",
                    (_latest("drift_verdict", 'verdict="drift"'), "{{model}}"),
                    bad=1,
                ),
                number(
                    "Last check",
                    "s",
                    "Time since a check came to an end; red after two periods of half an hour.",
                    (
                        f"time() - {_latest('drift_last_check_timestamp_seconds')}",
                        "{{model}}",
                    ),
                    bad=3600,
                ),
                number(
                    "Requests in the window",
                    "short",
                    "How many captured requests the last check looked at.",
                    (_latest("drift_window_requests"), "{{model}}"),
                ),
                number(
                    "CIDEr on corrected requests",
                    "short",
                    "What the model scored on the window's requests that people corrected.",
                    (_latest("performance_cider", 'kind="labelled"'), "{{model}}"),
                ),
            ],
            "Verdict": [
                timeline(
                    "Verdict of the checks",
                    "Suspected: the window exceeds its threshold, but not yet enough in a row.",
                    (
                        f"max by (model, verdict) (captionloop_drift_verdict{{{OF}}})",
                        "{{model}}: {{verdict}}",
                    ),
                ),
                graph(
                    "Size of the window",
                    "short",
                    "Captured requests a check looked at; too few allow no verdict.",
                    (_latest("drift_window_requests"), "{{model}}"),
                ),
            ],
            "Features": [
                graph(
                    "P-value by feature",
                    "short",
                    "How likely so large a difference is if nothing has changed. Embedding is the "
                    "picture as the model sees it.",
                    (
                        f"min by (model, feature) (captionloop_drift_p_value{{{OF}}})",
                        "{{model}}: {{feature}}",
                    ),
                    logarithmic=True,
                ),
                graph(
                    "Effect by feature",
                    "short",
                    "How large the difference is, whatever the number of requests.",
                    (
                        f"max by (model, feature) (captionloop_drift_effect{{{OF}}})",
                        "{{model}}: {{feature}}",
                    ),
                ),
            ],
            "Performance": [
                graph(
                    "CIDEr",
                    "short",
                    "Labelled: on corrected requests. Estimated: on all, from the log-probability "
                    "of their captions. Expected: as the champion was judged.",
                    (
                        f"max by (model, kind) (captionloop_performance_cider{{{OF}}})",
                        "{{model}}: {{kind}}",
                    ),
                ),
                graph(
                    "Corrections in an hour",
                    "short",
                    "What performance is measured on, and what a retraining learns from.",
                    ("sum(increase(captioner_feedback_total[1h]))", "corrections"),
                ),
            ],
        },
    )


def _latest(metric: str, *only: str) -> str:
    return f"max by (model) (captionloop_{metric}{{{', '.join((*only, OF))}}})"
