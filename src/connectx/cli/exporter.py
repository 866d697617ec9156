"""``connectx exporter``: serve metrics to Prometheus over HTTP."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import signal
import sys
from typing import TYPE_CHECKING, Final

from connectx.addresses import Endpoint
from connectx.cli.arguments import add_netns, add_protocols, endpoint, protocols, whole_number
from connectx.cli.command import INTERRUPTED, OK, CommandError, errors_reported
from connectx.cli.output import error_text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from connectx.observe.prometheus import SocketCollector

NAME: Final = "exporter"
HELP: Final = "Serve metrics to Prometheus: how full the source ports are, counted at each scrape."
EXAMPLE: Final = "connectx exporter --listen 127.0.0.1:9764 --top 20"

#: Below the default ip_local_port_range, 32768-60999, so that no connection takes it.
_ADDRESS: Final = Endpoint("127.0.0.1", 9764)

#: connectx.observe.prometheus.MOST_PAIRS, imported only when it runs.
_MOST_PAIRS: Final = 1000


def configure(parser: argparse.ArgumentParser) -> None:
    """Add its arguments."""
    parser.add_argument(
        "--listen",
        type=_address,
        default=_ADDRESS,
        metavar="ADDRESS:PORT",
        help="where to listen, in this network namespace; :PORT for every address, port 0 for any "
        f"free port (default: {_ADDRESS})",
    )
    parser.add_argument(
        "--top",
        type=whole_number(_MOST_PAIRS),
        default=0,
        metavar="N",
        help=f"export the N fullest pairs of source and destination too (at most {_MOST_PAIRS:,}), "
        "not only the fullest pair of each source",
    )
    add_protocols(parser)
    add_netns(parser)
    files = parser.add_mutually_exclusive_group()
    files.add_argument(
        "--rules", action="store_true", help="print alert rules for Prometheus, and exit"
    )
    files.add_argument(
        "--dashboard", action="store_true", help="print a dashboard for Grafana, and exit"
    )


def run(arguments: argparse.Namespace) -> int:
    """Serve until SIGTERM or Ctrl-C, or print a file."""
    if arguments.rules or arguments.dashboard:
        _print_file("rules.yml" if arguments.rules else "dashboard.json")
        return OK
    from connectx.observe.prometheus import SocketCollector  # noqa: PLC0415 - of the tools extra

    collector = SocketCollector(
        protocols=protocols(arguments),
        netns=arguments.netns,
        top=arguments.top,
        report=_complain,
    )
    with errors_reported():
        # Before serving, so that a namespace that does not exist, say, ends the command. Later,
        # failures show in the metrics.
        collector.look()
    return _serve(arguments.listen, collector)


def _serve(address: Endpoint, collector: SocketCollector) -> int:
    from prometheus_client import CollectorRegistry, make_wsgi_app  # noqa: PLC0415 - as above

    from connectx.observe.serving import Server  # noqa: PLC0415 - --help needs none of it

    registry = CollectorRegistry()
    registry.register(collector)
    try:
        server = Server(address, make_wsgi_app(registry))
    except OSError as error:
        raise CommandError(f"cannot listen on {address}: {error_text(error)}") from error
    with server, _signals() as signals:
        print(f"connectx exporter: {server.url}", flush=True)
        server.serve(signals)
        return INTERRUPTED if os.read(signals, 1)[0] == signal.SIGINT else OK


@contextlib.contextmanager
def _signals() -> Iterator[int]:
    """Yield a descriptor to read the numbers of SIGTERM and SIGINT from, as they come."""
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    numbers = [signal.SIGTERM]
    # A shell's background job ignores SIGINT; it keeps doing so.
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        numbers.append(signal.SIGINT)
    former = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    handlers = [(number, signal.signal(number, lambda *_: None)) for number in numbers]
    try:
        yield reader
    finally:
        for number, handler in handlers:
            signal.signal(number, handler)
        signal.set_wakeup_fd(former)
        os.close(reader)
        os.close(writer)


def _print_file(name: str) -> None:
    from importlib.resources import files  # noqa: PLC0415 - only these need it

    sys.stdout.write(files("connectx.observe").joinpath("files", name).read_text("utf-8"))


def _complain(text: str) -> None:
    print(f"connectx exporter: {text}", file=sys.stderr, flush=True)


def _address(text: str) -> Endpoint:
    if not re.fullmatch(r"(\[[^]]+\]|[^:]*):\d+", text, re.ASCII):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not ADDRESS:PORT, such as {_ADDRESS} or [::1]:{_ADDRESS.port}"
        )
    return endpoint(text)
