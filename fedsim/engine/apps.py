"""Where a Flower app comes from, and the one place that gives a process its Flower identity."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cloudpickle
from flwr.clientapp import ClientApp
from flwr.clientapp.client_app import LoadClientAppError
from flwr.serverapp import ServerApp
from flwr.serverapp.server_app import LoadServerAppError
from flwr.supercore.object_ref import load_app
from flwr.supercore.task_identity import TaskIdentity

from fedsim.errors import EngineError

SERVER_NODE_ID = 1_000_000_007  # never a client's id, which is partition-id + 1


@dataclass(frozen=True)
class AppSource:
    """A ClientApp by reference (``module:attribute`` in a directory), or pickled by this program.

    A reference is loaded anew in every worker, as Flower does; a pickle is how a ClientApp that
    was defined in a script or notebook reaches the workers.
    """

    reference: str = ""
    directory: str = ""
    pickled: bytes = b""

    @classmethod
    def of(cls, app: ClientApp) -> AppSource:
        """Pickle an app that lives in this process."""
        return cls(pickled=cloudpickle.dumps(app))

    def load(self) -> ClientApp:
        """Return the app.

        Raises:
            EngineError: it cannot be imported, or is no ClientApp.
        """
        if self.pickled:
            app = cloudpickle.loads(self.pickled)
        else:
            app = _load(self.reference, LoadClientAppError, self.directory)
        if not isinstance(app, ClientApp):
            raise EngineError(f"{self.reference or 'client_app'}: {type(app)} is not a ClientApp")
        return app


def load_server_app(reference: str, directory: str) -> ServerApp:
    """Return the ServerApp behind a reference; see :meth:`AppSource.load`."""
    app = _load(reference, LoadServerAppError, directory)
    if not isinstance(app, ServerApp):
        raise EngineError(f"{reference}: {type(app)} is not a ServerApp")
    return app


def _load(reference: str, error: type[Exception], directory: str) -> object:
    try:
        return load_app(reference, error, Path(directory))
    except (error, ImportError) as problem:
        raise EngineError(f"{reference} in {directory}: {problem}") from problem


def assume_identity(run_id: int) -> None:
    """Let this process create Flower messages, which Flower allows its own processes alone."""
    TaskIdentity.run_id = run_id
    TaskIdentity.node_id = SERVER_NODE_ID
    TaskIdentity.task_id = 1
