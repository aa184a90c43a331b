"""Every failure the load generator names, as one tree; the message alone tells the user what to mend.

LoadError
├── OptionError      arguments that cannot work
├── WorkloadError    a trace or bin table cannot be read or planned
├── PromptError      texts of an exact length cannot be made for this server
└── EndpointError    the server could not be asked before the load
"""


class LoadError(Exception):
    """Root of the tree; never raised itself."""


class OptionError(LoadError):
    """An argument is wrong, or two do not go together."""


class WorkloadError(LoadError):
    """Names the file, the line and the cause."""


class PromptError(LoadError):
    """The tokenizer or the length asked for does not allow it."""


class EndpointError(LoadError):
    """Says what was asked and why it failed. `status` is HTTP's; None where no answer came."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status
