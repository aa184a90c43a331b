"""The arguments of the load."""

from argparse import ArgumentParser, Namespace
from typing import Any

import pytest

from loadgen.errors import OptionError
from loadgen.options import DEFAULT_REQUESTS, add_arguments, read_options


class Parser(ArgumentParser):
    """Takes the keyword that Locust's parser adds."""

    def add_argument(self, *names: str, is_secret: bool = False, **settings: Any) -> Any:
        return super().add_argument(*names, **settings)


def given(*arguments: str) -> Namespace:
    parser = Parser()
    add_arguments(parser)
    return parser.parse_args(arguments)


def test_nothing_given_is_a_short_poisson_load() -> None:
    """The defaults make sense together."""
    options = read_options(given())

    assert (options.rate_per_s, options.requests, options.arrivals) == (2.0, DEFAULT_REQUESTS, "poisson")
    assert (
        options.model is options.max_model_len is options.max_in_flight is options.outcomes is options.api_key is None
    )


def test_a_duration_is_as_many_requests_as_the_rate_makes_of_it() -> None:
    """So the plan is known before the start."""
    assert read_options(given("--rate", "4", "--duration", "30")).requests == 120


def test_every_argument_has_a_help_text() -> None:
    """Locust shows it in the web form."""
    parser = Parser(add_help=False)
    add_arguments(parser)

    assert [a.dest for a in parser._actions if not a.help] == []


def test_the_web_form_gives_text_and_empty_fields() -> None:
    """Empty is not given."""
    form = given()
    vars(form).update(requests="25", duration="", model="", max_in_flight="8", max_model_len="")
    options = read_options(form)

    assert (options.requests, options.max_in_flight, options.model, options.max_model_len) == (25, 8, None, None)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"requests": 5, "duration": 5}, "not both"),
        ({"rate": -1.0}, "--rate must be above zero"),
        ({"requests": "many"}, "--requests needs a number, not 'many'"),
        ({"arrivals": "weekly"}, "one of poisson, constant, gamma"),
    ],
)
def test_what_cannot_work_is_refused(changes: dict[str, Any], said: str) -> None:
    """The message names the argument."""
    form = given()
    vars(form).update(changes)

    with pytest.raises(OptionError, match=said):
        read_options(form)
