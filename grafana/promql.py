"""The PromQL of the dashboard: what is asked, kept to the backends and models that are chosen."""

from kinds import Query

J_PER_TOKEN = "suffix: J/token"
TOKENS_PER_SECOND = "suffix: tok/s"
STEADY = "1m"  # min step of panels in which single requests would make the curve jump

HERE = 'backend=~"$backend"'
OF_MODEL = 'model=~"$model"'  # all that a histogram is labelled with
MODEL = f'{HERE},model=~"$model"'
OUTPUT = f'{MODEL},kind="completion"'
METER = "jouleproxy_gpu_energy_joules_total"
BOOKED = "jouleproxy_energy_joules_total"
SPENT = "jouleproxy_request_energy_joules_total"
TENANT = "jouleproxy_tenant_energy_joules_total"
TOKENS = "jouleproxy_tokens_total"


def rate(metric: str, by: str = "", where: str = HERE) -> str:
    """Growth per second, added up over all labels but `by`."""
    return f"sum{f' by ({by})' if by else ''} (rate({metric}{{{where}}}[$__rate_interval]))"


def over_range(metric: str, by: str = "", where: str = HERE) -> str:
    """Growth over the time range of the dashboard, added up over all labels but `by`."""
    return f"sum{f' by ({by})' if by else ''} (increase({metric}{{{where}}}[$__range]))"


def in_account(account: str) -> str:
    """Only one of the four accounts."""
    return f'{HERE},account="{account}"'


def ratio(part: str, whole: str) -> str:
    """Part / whole; no series, rather than infinity, while the whole is 0."""
    return f"{part} / ({whole} > 0)"


def quantiles(metric: str, high: int = 95) -> list[Query]:
    """Median and a high quantile of a histogram, for each model."""
    spread = rate(f"{metric}_bucket", by="le, model", where=OF_MODEL)
    return [
        Query(f"histogram_quantile({quantile / 100}, {spread})", f"{{{{model}}}} p{quantile}")
        for quantile in (50, high)
    ]


def gauge(metric: str, by: str) -> Query:
    """A gauge as it stands, one series per label set."""
    return Query(f"max by ({by}) ({metric}{{{HERE}}})", " ".join(f"{{{{{label}}}}}" for label in by.split(", ")))
