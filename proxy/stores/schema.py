"""The ledger's tables, the same on SQLite and PostgreSQL; the law is a constraint of the schema.

    meta       schema version
    writers    one row per writing process: who writes under that name now, and its last committed batch
    meters     identity of each meter and the counter value the books reach to
    accounts   where each meter's energy went, by hour: the four accounts and their sum
    requests   one row per request
    retired    hourly totals of request rows that retention deleted

At every commit, for every backend:
    sum(accounts.requests_uj) == sum(requests.energy_uj) + sum(retired.energy_uj)
and the four accounts of each row of `accounts` equal its meter_uj (a CHECK). Energy is in whole microjoules,
spans in whole nanoseconds, `hour` counts whole hours since 1970 (UTC).

Versions: 2 added the uncertainties, 3 the grade of hourly totals. What a version adds can be absent, so that a ledger
is upgraded in place.
"""

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ColumnElement,
    Float,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    case,
    func,
    text,
)

VERSION = "3"
NS_PER_HOUR = 3_600_000_000_000

ACCOUNTS = ("requests_uj", "idle_uj", "unattributed_uj", "unmeasured_uj", "meter_uj")
"""The amounts of `accounts`; the last is the sum of the others."""

TOKENS = ("prompt_tokens", "cached_tokens", "completion_tokens")
AMOUNTS = ("energy_uj", "token_share_uj", "prefill_uj", "decode_uj", "shared_uj", *TOKENS)
"""What is summed over requests; the tokens may be unknown (NULL)."""
SPREAD = ("prefill_tilt_j", "shared_tilt_j", "unseen_tilt_j", "guess_tilt_j", "noise_j2")
"""What is summed over requests to say how far their sum may be off; NULL when it is not known of one of them.

Joules and their square, and no part of the law.
"""

metadata = MetaData()


def _text(name: str, *, key: bool = False) -> Column[str]:
    return Column(name, Text, primary_key=key, nullable=False)


def _whole(name: str, *, key: bool = False, optional: bool = False) -> Column[int]:
    return Column(name, BigInteger, primary_key=key, nullable=optional, autoincrement=False)


def whole_sum(column: ColumnElement[float]) -> ColumnElement[float | None]:
    """The sum, or NULL when one of the summands is: part of a doubt would be mistaken for all of it."""
    return case((func.count(column) == func.count(), func.sum(column)))


def worst(column: ColumnElement[str]) -> ColumnElement[str | None]:
    """The worst grade, or NULL when one is not known; A to D and `unmeasured` are in the order of their letters."""
    return case((func.count(column) == func.count(), func.max(column)))


meta = Table("meta", metadata, _text("name", key=True), _text("value"))

writers = Table("writers", metadata, _text("writer", key=True), _text("instance"), _whole("sequence"))

meters = Table(
    "meters",
    metadata,
    _text("writer", key=True),
    _text("backend", key=True),
    _text("meter", key=True),
    _text("gpu"),
    _text("kind"),
    Column("estimated", Boolean, nullable=False),
    _text("description"),
    _text("epoch"),
    _whole("last_counter_uj"),
    Column("absolute_uncertainty", Float),
)

accounts = Table(
    "accounts",
    metadata,
    _whole("hour", key=True),
    _text("writer", key=True),
    _text("backend", key=True),
    _text("meter", key=True),
    *(_whole(name) for name in ACCOUNTS),
    CheckConstraint("requests_uj + idle_uj + unattributed_uj + unmeasured_uj = meter_uj", name="the_law"),
)

requests = Table(
    "requests",
    metadata,
    # An integer key keeps the rows in order of arrival; SQLite makes only a plain INTEGER its row number.
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("row", Text, nullable=False, unique=True),
    _text("writer"),
    _text("request_id"),
    _text("tenant"),
    _text("model"),
    _text("backend"),
    _text("endpoint"),
    Column("stream", Boolean, nullable=False),
    _text("state"),
    _text("outcome"),
    _text("policy"),
    _text("grade"),
    Column("estimated", Boolean, nullable=False),
    _whole("energy_uj"),
    _whole("token_share_uj"),
    _whole("prefill_uj"),
    _whole("decode_uj"),
    _whole("shared_uj"),
    _whole("metered_uj"),
    _whole("prompt_tokens", optional=True),
    _whole("cached_tokens", optional=True),
    _whole("completion_tokens", optional=True),
    _whole("started_at_unix_ns"),
    _whole("duration_ns"),
    _whole("ttft_ns", optional=True),
    _whole("tpot_ns", optional=True),
    Column("relative_uncertainty", Float),
    Column("http_status", Integer),
    Column("absolute_uncertainty", Float),
    *(Column(name, Float) for name in SPREAD),
    CheckConstraint("prefill_uj + decode_uj + shared_uj = energy_uj", name="phases_add_up"),
)
Index("requests_by_request_id", requests.c.request_id)
Index("requests_by_start", requests.c.started_at_unix_ns)
Index("requests_by_tenant", requests.c.tenant, requests.c.started_at_unix_ns)
Index(
    "requests_open",
    requests.c.writer,
    sqlite_where=text("state = 'open'"),
    postgresql_where=text("state = 'open'"),
)

retired = Table(
    "retired",
    metadata,
    _whole("hour", key=True),
    _text("writer", key=True),
    _text("backend", key=True),
    _text("tenant", key=True),
    _text("model", key=True),
    _whole("requests"),
    *(_whole(name, optional=name in TOKENS) for name in AMOUNTS),
    *(Column(name, Float) for name in SPREAD),
    Column("grade", Text),
)
