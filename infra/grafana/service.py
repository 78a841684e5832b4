"""What the captioner does for those who ask it."""

from grafana_foundation_sdk.models.dashboard import Dashboard

from infra.grafana.panels import dashboard, graph, number, timeline, variable

RATE = "$__rate_interval"
ON = 'instance=~"$instance"'
CAPTIONS = f'{ON}, route="/v1/caption"'


def service() -> Dashboard:
    return dashboard(
        "captionloop-service",
        "Captioner: service",
        "Budgets, traffic, latency, models and captures of the HTTP service.",
        [
            variable("model", "Model", "label_values(captioner_model_info, name)"),
            variable(
                "instance",
                "Instance",
                'label_values(captioner_model_info{name=~"$model"}, instance)',
            ),
        ],
        {
            "Now": [
                number(
                    "Instances that answer",
                    "short",
                    "Captioners whose metrics Prometheus could read at its last try.",
                    (f'sum(up{{job="captioner", {ON}}})', "up"),
                ),
                number(
                    "Requests",
                    "reqps",
                    "Requests a second of all kinds, /metrics aside.",
                    (_per_second("requests_total", 'route!="/metrics"'), "requests"),
                ),
                number(
                    "Errors in an hour",
                    "percentunit",
                    "Share of requests that ended with a 5xx; the budget is 0.5 %.",
                    ("job:captioner_request_errors:ratio_rate1h", "{{job}}"),
                    bad=0.005,
                ),
                number(
                    "Slow captions in an hour",
                    "percentunit",
                    "Share of captions that took longer than 2.5 s; the budget is 1 %.",
                    ("job:captioner_slow_captions:ratio_rate1h", "{{job}}"),
                    bad=0.01,
                ),
            ],
            "Budgets": [
                graph(
                    "Burn rate of the error budget",
                    "short",
                    "1 uses up the budget of 0.5 % in exactly 30 days; 14.4 over an hour and 6 "
                    "over six hours wake somebody up.",
                    *_burn_rates("captioner_request_errors", 0.005),
                    bad=1,
                ),
                graph(
                    "Burn rate of the latency budget",
                    "short",
                    "1 uses up the budget of 1 % slower than 2.5 s in exactly 30 days.",
                    *_burn_rates("captioner_slow_captions", 0.01),
                    bad=1,
                ),
            ],
            "Traffic": [
                graph(
                    "Requests by route",
                    "reqps",
                    "`other` is what no route has, or was refused before its route was found.",
                    (_per_second("requests_total", by="route"), "{{route}}"),
                ),
                graph(
                    "Requests by status",
                    "reqps",
                    "429 is too busy, 499 a client that went away, 5xx is ours.",
                    (_per_second("requests_total", 'route!="/metrics"', by="status"), "{{status}}"),
                ),
                graph(
                    "Images by outcome",
                    "cps",
                    "Images received a second, captioned or refused.",
                    (_per_second("images_total", by="outcome"), "{{outcome}}"),
                ),
                graph(
                    "Requests in progress",
                    "short",
                    "Not answered yet; beyond CAPTIONLOOP_MAX_REQUESTS the next ones get 429.",
                    (f"sum by (instance) (captioner_requests_in_progress{{{ON}}})", "{{instance}}"),
                ),
            ],
            "Latency": [
                graph(
                    "Time to a caption",
                    "s",
                    "Of POST /v1/caption, from the first byte to the answer.",
                    (_quantile(0.5, "request_seconds", CAPTIONS), "half"),
                    (_quantile(0.95, "request_seconds", CAPTIONS), "95 %"),
                    (_quantile(0.99, "request_seconds", CAPTIONS), "99 %"),
                    bad=2.5,
                ),
                graph(
                    "Time in the queue",
                    "s",
                    "How long an image waited until its batch began: it grows before 429s come.",
                    (_quantile(0.5, "queue_seconds"), "half"),
                    (_quantile(0.95, "queue_seconds"), "95 %"),
                ),
                graph(
                    "Images in a batch",
                    "short",
                    "Mean size of a batch; 1 means that nobody has to wait for others.",
                    (_mean("batch_size"), "mean"),
                ),
            ],
            "Models": [
                timeline(
                    "Version that answers",
                    "Which version of which model each instance answers with.",
                    (
                        f'captioner_model_info{{{ON}, name=~"$model"}}',
                        "{{instance}}: {{name}} {{version}}",
                    ),
                ),
                graph(
                    "Swaps",
                    "short",
                    "New models taken up and refused, and looks at the registry that failed.",
                    (_increase("swaps_total"), "taken up"),
                    (_increase("swap_failures_total"), "refused"),
                    (_increase("follow_errors_total"), "registry not reached"),
                ),
                graph(
                    "Length of captions",
                    "short",
                    "Mean number of tokens: a jump is a new model, new pictures, or a collapse.",
                    (_mean("caption_tokens"), "tokens"),
                ),
                graph(
                    "Memory of the GPU",
                    "bytes",
                    "Of all processes on it; nothing where the model runs on a CPU.",
                    (
                        f"sum by (instance, state) (captioner_gpu_memory_bytes{{{ON}}})",
                        "{{instance}} {{state}}",
                    ),
                ),
            ],
            "Challenger": [
                timeline(
                    "Version that is tried out",
                    "As canary it answers a share of the requests, as shadow nobody hears it.",
                    (
                        f"captioner_challenger_info{{{ON}}}",
                        "{{instance}}: {{name}} {{version}} {{role}}",
                    ),
                ),
                graph(
                    "Canary",
                    "short",
                    "Images that it captioned, and those on which it failed.",
                    (_increase("canary_answers_total"), "answered"),
                    (_increase("canary_failures_total"), "failed"),
                ),
                graph(
                    "Shadow by outcome",
                    "short",
                    "How its caption compares with the one that was answered.",
                    (_increase("shadow_total", by="outcome"), "{{outcome}}"),
                ),
                graph(
                    "Gain of the shadow",
                    "short",
                    "Mean log-probability a token of its caption less that of the answer.",
                    (_mean("shadow_log_probability_gain"), "gain"),
                ),
            ],
            "Captures": [
                graph(
                    "Size of the store",
                    "bytes",
                    "What is kept of it all; beyond CAPTIONLOOP_CAPTURE_MAX_BYTES the oldest go.",
                    (f"max(captioner_capture_store_bytes{{{ON}}})", "kept"),
                ),
                graph(
                    "Captures that went",
                    "short",
                    "Lost because the store was away, too old or too many, deleted on request.",
                    (_increase("capture_drops_total"), "lost"),
                    (_increase("captures_expired_total"), "expired"),
                    (_increase("captures_deleted_total"), "deleted"),
                ),
                graph(
                    "Corrections",
                    "short",
                    "Captions that people sent for earlier requests.",
                    (_increase("feedback_total"), "corrections"),
                ),
                graph(
                    "Token files not taken up",
                    "short",
                    "The file has changed and can't be read: the tokens before it stay valid.",
                    (_increase("token_reload_errors_total"), "failures"),
                ),
            ],
        },
    )


def _per_second(metric: str, only: str = "", by: str = "") -> str:
    return _sum("rate", metric, only, by)


def _increase(metric: str, by: str = "") -> str:
    return _sum("increase", metric, "", by)


def _sum(function: str, metric: str, only: str, by: str) -> str:
    chosen = ", ".join(filter(None, (ON, only)))
    grouped = f"sum by ({by})" if by else "sum"
    return f"{grouped} ({function}(captioner_{metric}{{{chosen}}}[{RATE}]))"


def _mean(histogram: str) -> str:
    return f"{_per_second(histogram + '_sum')} / {_per_second(histogram + '_count')}"


def _quantile(q: float, histogram: str, chosen: str = ON) -> str:
    buckets = f"sum by (le) (rate(captioner_{histogram}_bucket{{{chosen}}}[{RATE}]))"
    return f"histogram_quantile({q}, {buckets})"


def _burn_rates(record: str, budget: float) -> list[tuple[str, str]]:
    windows = ("5m", "1h", "6h", "3d")
    return [
        (f"job:{record}:ratio_rate{window} / {budget}", f"{{{{job}}}} over {window}")
        for window in windows
    ]
