"""Every failure this program names, as one tree.

JouleproxyError
├── ConfigurationError      the operator asked for something impossible
├── MeterError              a meter could not be read; its energy is not known
│   ├── MeterUnavailable    no such sensor, driver or permission on this machine
│   ├── MeterLost           the device fell off the bus or needs a reset; try again later
│   └── MeterUnsupported    the device is there but has no energy counter
└── RequestError            the client is answered with `status` in OpenAI's error shape
    ├── BadRequest          400: the request itself is wrong
    ├── Unauthorized        401: no or wrong key
    ├── NotFound            404: no such request, model or path
    ├── BodyTooLarge        413
    ├── BackendFailed       502: the backend broke off or answered nonsense
    ├── NoBackend           503: no backend is healthy
    │   └── Refused         one could not be connected to; another may be tried
    └── BackendTimeout      504
"""


class JouleproxyError(Exception):
    """Root of the tree; never raised itself."""


class ConfigurationError(JouleproxyError):
    """The settings cannot work; the message says which one and how to mend it."""


class MeterError(JouleproxyError):
    """A meter gave no reading. Its energy is unknown, which is not the same as zero."""


class MeterUnavailable(MeterError):
    """This machine has no such sensor, or this user may not read it."""


class MeterLost(MeterError):
    """The device was there and is not now; reading may work again later."""


class MeterUnsupported(MeterError):
    """The device has no cumulative energy counter and no power reading to replace it."""


class RequestError(JouleproxyError):
    """An answer to the client; `status` and `type` follow OpenAI's error object."""

    status = 500
    type = "server_error"
    code: str | None = None

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param


class BadRequest(RequestError):
    """The request is wrong in itself; sending it again unchanged will fail again."""

    status = 400
    type = "invalid_request_error"


class Unauthorized(RequestError):
    """No key, or one that belongs to no tenant."""

    status = 401
    type = "invalid_request_error"
    code = "invalid_api_key"


class NotFound(RequestError):
    """Nothing here has that name."""

    status = 404
    type = "invalid_request_error"
    code = "not_found"


class BodyTooLarge(RequestError):
    """The request body exceeds the configured limit."""

    status = 413
    type = "invalid_request_error"
    code = "body_too_large"


class BackendFailed(RequestError):
    """The backend broke the connection or could not be understood."""

    status = 502
    code = "backend_failed"


class NoBackend(RequestError):
    """No backend can take the request now."""

    status = 503
    code = "no_backend"


class Refused(NoBackend):
    """No connection came about, so nothing was sent and another backend may be tried."""


class BackendTimeout(RequestError):
    """The backend did not answer in time."""

    status = 504
    code = "backend_timeout"


class LedgerUnavailable(RequestError):
    """The ledger's database does not answer reads now; postings wait and are not lost."""

    status = 503
    code = "ledger_unavailable"
