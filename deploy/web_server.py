"""HTTP on this machine only: our page and folders of models, with the headers that isolate a page."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path
from typing import Any

from nailcore.errors import BrowserError

BUNDLE_DIR = Path(__file__).parent / "web" / "bundle"
PAGE = "/web/index.html"
START_TIMEOUT_S = 60
# Cross-origin isolation: a finer performance.now, and SharedArrayBuffer for the threaded wasm build.
_HEADERS = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",  # each load is a real one
}


class LocalServer:
    """HTTP on 127.0.0.1 and a free port: our page under ``/web``, folders on request."""

    def __init__(self) -> None:
        import uvicorn
        from starlette.applications import Starlette

        self._app = Starlette()
        self._mounted: dict[Path, str] = {}
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._socket.bind(("127.0.0.1", 0))
        self.origin = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        config = uvicorn.Config(
            self._app,
            loop="asyncio",
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._socket]}, name="nailtool-http", daemon=True
        )
        self._mount("/web", BUNDLE_DIR)
        self._thread.start()
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > deadline:
                raise BrowserError("The local web server did not start.", hint="Is 127.0.0.1 usable here?")
            time.sleep(0.01)

    @property
    def page(self) -> str:
        """URL of the page that carries ``window.nailtool``."""
        return self.origin + PAGE

    def serve(self, folder: Path) -> str:
        """Serve the files of a folder from now on; returns its URL without a trailing slash."""
        if folder not in self._mounted:
            self._mounted[folder] = self._mount(f"/models/{len(self._mounted) + 1}", folder)
        return self._mounted[folder]

    def _mount(self, prefix: str, folder: Path) -> str:
        from starlette.responses import Response
        from starlette.routing import Mount
        from starlette.staticfiles import StaticFiles

        class IsolatedFiles(StaticFiles):
            def file_response(self, *args: Any, **kwargs: Any) -> Response:
                response = super().file_response(*args, **kwargs)
                response.headers.update(_HEADERS)
                return response

        self._app.router.routes.append(Mount(prefix, IsolatedFiles(directory=folder)))
        return self.origin + prefix

    def close(self) -> None:
        """Stop serving; waits at most a few seconds."""
        self._server.should_exit = True
        self._thread.join(timeout=5)
        self._socket.close()
