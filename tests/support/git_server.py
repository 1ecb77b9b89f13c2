"""Files and git repositories over HTTP on loopback, as a daemon fetches them."""

from __future__ import annotations

import http.server
import os
import shutil
import subprocess
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

_GIT_SECONDS = 60
_AUTHOR = {
    "GIT_AUTHOR_NAME": "tester",
    "GIT_AUTHOR_EMAIL": "tester@localhost",
    "GIT_COMMITTER_NAME": "tester",
    "GIT_COMMITTER_EMAIL": "tester@localhost",
}


def git(folder: Path, *arguments: str) -> str:
    """Run git in folder; what it prints."""
    environ = {**os.environ, **_AUTHOR, "HOME": str(folder), "GIT_CONFIG_NOSYSTEM": "1"}
    done = subprocess.run(
        ["git", *arguments], cwd=folder, env=environ, capture_output=True, text=True, timeout=_GIT_SECONDS, check=True
    )
    return done.stdout.strip()


def find_git_server() -> str | None:
    """git's own program for serving repositories over HTTP."""
    if shutil.which("git") is None:
        return None
    path = Path(subprocess.run(["git", "--exec-path"], capture_output=True, text=True, check=True).stdout.strip())
    return str(path / "git-http-backend") if (path / "git-http-backend").exists() else None


class _Handler(http.server.SimpleHTTPRequestHandler):
    """Files below the root; repositories, whose names end in .git, through git-http-backend as a CGI program."""

    server: Server

    def __init__(self, request: object, client: object, server: Server) -> None:
        super().__init__(request, client, server, directory=str(server.root))  # type: ignore[arg-type]

    def log_message(self, format: str, *args: object) -> None:
        self.server.requests.append(format % args)

    def do_GET(self) -> None:
        if ".git/" in self.path:
            self._git(b"")
        elif self._allowed():
            super().do_GET()

    def do_POST(self) -> None:
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = bytearray()
            while size := int(self.rfile.readline().split(b";")[0], 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = bytearray(self.rfile.read(int(self.headers.get("Content-Length", "0"))))
        self._git(bytes(body))

    def _allowed(self) -> bool:
        wanted = self.server.authorization
        if wanted is None or self.headers.get("Authorization") == wanted:
            return True
        self.send_response(401)
        self.send_header("WWW-Authenticate", 'Basic realm="tests"')
        self.send_header("Content-Length", "0")
        self.end_headers()
        return False

    def _git(self, body: bytes) -> None:
        if not self._allowed():
            return
        backend = find_git_server()
        assert backend is not None
        url = urlsplit(self.path)
        environ = {
            **os.environ,
            "GIT_PROJECT_ROOT": str(self.server.root),
            "GIT_HTTP_EXPORT_ALL": "1",
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": "safe.directory",
            "GIT_CONFIG_VALUE_0": "*",
            "PATH_INFO": url.path,
            "QUERY_STRING": url.query,
            "REQUEST_METHOD": self.command,
            "CONTENT_TYPE": self.headers.get("Content-Type", ""),
            "CONTENT_LENGTH": str(len(body)),
            "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
            "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
        }
        done = subprocess.run([backend], input=body, env=environ, capture_output=True, timeout=_GIT_SECONDS, check=True)
        head, _, content = done.stdout.partition(b"\r\n\r\n")
        headers = [line.partition(": ") for line in head.decode().split("\r\n")]
        status = next((value for name, _, value in headers if name == "Status"), "200 OK")
        self.send_response(int(status.split()[0]))
        for name, _, value in headers:
            if name != "Status":
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


class Server(http.server.ThreadingHTTPServer):
    """Serves a directory; knows what was asked."""

    daemon_threads = True

    def __init__(self, root: Path) -> None:
        self.root = root
        self.requests: list[str] = []
        """Request lines with their status, in the order of their answers."""
        self.authorization: str | None = None
        """What the header of that name has to be; None lets everybody in."""
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@contextmanager
def serve_directory(root: Path) -> Generator[Server]:
    """A server of its own for the time of the body."""
    server = Server(root)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, name="file server")
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
