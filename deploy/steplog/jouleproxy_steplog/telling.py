"""What the plugin says in vLLM's log, whatever becomes of it: a handler that raises is no matter of the engine."""

import logging
from typing import Any

# below vLLM's own logger, whose handler then shows it
_log = logging.getLogger("vllm.jouleproxy_steplog")


def tell(level: int, text: str, *arguments: Any, exc_info: bool = False) -> None:
    """One line. A log that cannot be written to, such as a pipe whose reader has gone, is nobody's matter here."""
    try:
        _log.log(level, text, *arguments, exc_info=exc_info)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException:
        return
