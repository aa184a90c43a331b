"""The grade of each request: where the facts of its windows came from."""

from proxy.accounting.activity import Activity


class Grading:
    """Which requests were known from the step log all along.

    meters: the best grade that the meters allow, B to D. logging: whether the last busy window came from the log.
    shared: another server has a part of a meter, which only a model can tell.
    """

    def __init__(self, meters: str) -> None:
        self.meters = meters
        self.logging = False
        self.shared = False
        self._logged: dict[str, bool] = {}

    def share(self) -> None:
        """From now on nothing is better than D, whatever is known of the steps."""
        self.shared = True
        self.meters = "D"

    @property
    def now(self) -> str:
        """What the doubts about a window follow: the log where it is heard, else the meters."""
        return "A" if self.logging and not self.shared else self.meters

    def note(self, activity: Activity) -> None:
        """A window was divided on these facts."""
        if activity.flights or activity.strangers:
            self.logging = activity.logged
        for flight in activity.flights:
            self._logged[flight.row] = activity.logged and self._logged.get(flight.row, True)

    def of(self, row: str) -> str:
        """A: all its windows so far came from the step log; else what the meters allow."""
        return "A" if self.meters == "B" and self._logged.get(row, self.logging) else self.meters

    def forget(self, row: str) -> None:
        """The request is settled."""
        self._logged.pop(row, None)
