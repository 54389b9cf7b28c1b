"""The messages between the parent, the template of its workers, its workers, and two workers."""

from typing import TypeAlias

import msgspec


class _Message(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """A message; its tag is the name of its class."""


# Between the parent and the template of the workers


class Fork(_Message, frozen=True):
    """Fork a worker with these environment variables. Its end of a channel to the parent comes with this."""

    variables: dict[str, str]


class Become(_Message, frozen=True):
    """Be a worker yourself; otherwise like Fork."""

    variables: dict[str, str]


class Wait(_Message, frozen=True):
    """Answer with the exit code of this worker, which has ended."""

    pid: int


ToTemplate: TypeAlias = Fork | Become | Wait


class Forked(_Message, frozen=True):
    """A worker was forked. A file that names the process comes with this message."""

    pid: int


class NotForked(_Message, frozen=True):
    """The system could not fork a worker."""

    errno: int


class Ended(_Message, frozen=True):
    """The exit code of a worker, negative for a signal."""

    code: int


FromTemplate: TypeAlias = Forked | NotForked | Ended


# From the parent


class Start(_Message, frozen=True):
    """The first message: the number of the worker, from 1 on, and how many sockets come for each port.

    `parent` is the id of the parent's process. With a private bus, the workers are the only instances.
    """

    number: int
    workers: int
    main: int
    redirect: int
    parent: int
    private_bus: bool


class Sibling(_Message, frozen=True):
    """A channel to another worker comes with this message."""

    number: int


class Reload(_Message, frozen=True):
    """Read the certificate again."""


class Leave(_Message, frozen=True):
    """All workers end: refuse new peers from now on, and answer with Leaving."""


class Drain(_Message, frozen=True):
    """Close all peers within `window_s`, and end."""

    window_s: float


class Hurry(_Message, frozen=True):
    """Close all peers as soon as no device can lose its key, and end."""


class ReportMetrics(_Message, frozen=True):
    """Answer with Metrics."""


class AllMetrics(_Message, frozen=True):
    """The metrics of all workers, for a WantMetrics."""

    request: int
    text: bytes


FromParent: TypeAlias = Start | Sibling | Reload | Leave | Drain | Hurry | ReportMetrics | AllMetrics


# From a worker to the parent


class Ready(_Message, frozen=True):
    """The worker accepts connections; `lines` are for stdout."""

    lines: list[str]


class Alive(_Message, frozen=True):
    """The event loop of the worker runs."""


class Leaving(_Message, frozen=True):
    """The worker refuses new peers, and has this many."""

    peers: int


class Metrics(_Message, frozen=True):
    """The metrics of the worker itself."""

    text: bytes


class WantMetrics(_Message, frozen=True):
    """Answer with a AllMetrics."""

    request: int


FromWorker: TypeAlias = Ready | Alive | Leaving | Metrics | WantMetrics


# Between two workers


class Places(_Message, frozen=True):
    """What this worker has now of some devices: the sum of 2 for the device and 1 for clients of it."""

    changed: dict[str, int]


class Offered(msgspec.Struct, frozen=True, array_like=True):
    """A connection with a WebSocket request.

    `family` is that of its socket. `head` is the request, without the empty line at its end, and `rest` the
    data after it.
    """

    family: int
    address: str
    port: int
    secure: bool
    head: bytes
    rest: bytes


class Offer(_Message, frozen=True):
    """Some connections. A token comes with this message, and then their sockets.

    The worker that reads the byte in the token owns all of them.
    """

    number: int
    connections: list[Offered]


class Answer(_Message, frozen=True):
    """Whether the worker has taken the connections of an Offer."""

    number: int
    taken: bool


FromSibling: TypeAlias = Places | Offer | Answer
