"""jouleproxy: an OpenAI-compatible front for vLLM that says for every request how many joules it cost.

Reading order, from the bottom up; each part imports itself and what stands above it in this list, nothing else:

    errors.py      every failure by name
    accounting/    what a joule per request means        pure, whole numbers, no clock, no I/O
    wire/          what the bytes mean                   pure, bytes in, values out
    ports.py       what the loops need from outside      protocols only
    meters/ upstream/ stores/                            adapters, each owns one outside thing
    relay.py       loop 1: a request forwarded, its tokens noted
    sampler.py     loop 2: every period each meter is read
    settlement.py  loop 3: windows meet requests, the ledger is posted
    asgi.py        the client's end of an exchange
    routes.py reports/ pages.py metrics.py settings.py   the edge: HTTP, Prometheus, settings
    app/           where the parts meet
    commands/      one file per subcommand
    __main__.py    the command line
"""

__version__ = "0.1.0"
