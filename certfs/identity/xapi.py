"""A client of the platform's API over its local socket (XML-RPC on a unix socket, no network).

Owns the connection, the session and the form of answers and errors. Must not know what a caller asks for.
"""

import contextlib
import errno
import http.client
import socket
import xmlrpc.client
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Self
from xml.parsers.expat import ExpatError

from certfs.errors import CertfsError, DeadlineError, PrivilegeError

SOCKET: Final = Path("/var/lib/xcp/xapi")
_CALL_SECONDS: Final = 30.0
_LARGEST_ANSWER: Final = 16 << 20
"""Bytes: the records of thousands of hosts."""


class XapiError(CertfsError):
    """XAPI refused the request, failed at it, or is not there."""

    exit_code = 40

    def __init__(self, message: str, *, advice: str = "", code: str = "") -> None:
        super().__init__(message, advice=advice)
        self.code = code
        """The platform's name of the error, empty where XAPI gave none."""

    def to_json(self) -> dict[str, object]:
        """Return what a program is told that asked for JSON."""
        return {**super().to_json(), "xapi_error": self.code}


class Session:
    """A session with the XAPI of this host, which forwards to the coordinator what a member cannot do itself."""

    def __init__(self, path: Path = SOCKET, *, seconds: float = _CALL_SECONDS) -> None:
        self._path = path
        self._seconds = seconds
        self._proxy = xmlrpc.client.ServerProxy(
            "http://localhost/", transport=_UnixTransport(path, seconds)
        )
        self._reference: object = None

    def __enter__(self) -> Self:
        # Over the local socket XAPI asks for no password.
        self._reference = self._request("session.login_with_password", "", "", "1.0", "certfs")
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(CertfsError):
            self._request("session.logout", self._reference)
        self._proxy("close")()

    def call(self, method: str, *arguments: object) -> Any:  # noqa: ANN401 - whatever the method answers
        """Call a method of the API in this session; return its value.

        Raises ``XapiError`` with the platform's name of the error, ``DeadlineError`` where no answer came in time.
        """
        return self._request(method, self._reference, *arguments)

    def _request(self, method: str, *arguments: object) -> Any:  # noqa: ANN401 - as above
        with self._errors(method):
            answer = getattr(self._proxy, method)(*arguments)
        match answer:
            case {"Status": "Success", "Value": value}:
                return value
            case {"Status": "Failure", "ErrorDescription": [code, *details]}:
                raise failure(method, str(code), details)
        raise XapiError(f"{self._path}: no answer of XAPI to {method}", advice=_NOT_XAPI)

    @contextlib.contextmanager
    def _errors(self, method: str) -> Iterator[None]:
        try:
            yield
        except TimeoutError:
            raise DeadlineError(
                f"{self._path}: XAPI did not answer {method} within {self._seconds:g} s",
                advice="look at it: systemctl status xapi, /var/log/xensource.log",
            ) from None
        except OSError as error:
            if error.errno in {errno.EACCES, errno.EPERM}:
                raise PrivilegeError(
                    f"{self._path}: {error.strerror}", advice="run this as root"
                ) from None
            missing = error.errno in {errno.ENOENT, errno.ECONNREFUSED}
            raise XapiError(
                f"{self._path}: {error.strerror or error}",
                advice="XAPI does not run on this host: systemctl start xapi" if missing else _LOOK,
            ) from None
        except xmlrpc.client.Fault as fault:
            raise XapiError(
                f"{method}: {fault.faultString}", advice=_LOOK, code=str(fault.faultCode)
            ) from None
        except (xmlrpc.client.Error, http.client.HTTPException, ExpatError, ValueError) as error:
            raise XapiError(
                f"{self._path}: no answer of XAPI to {method}: {error}", advice=_NOT_XAPI
            ) from None


_LOOK: Final = "look at /var/log/xensource.log"
_NOT_XAPI: Final = "something else than XAPI answers there, or it is ending; try again"


def failure(method: str, code: str, details: list[object]) -> XapiError:
    """Return the error for what XAPI says went wrong in ``method``."""
    said = ", ".join(str(detail) for detail in details if detail)
    return XapiError(f"{method}: {code}" + (f" ({said})" if said else ""), advice=_LOOK, code=code)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, seconds: float) -> None:
        super().__init__("localhost", timeout=seconds)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class _UnixTransport(xmlrpc.client.Transport):
    def __init__(self, path: Path, seconds: float) -> None:
        super().__init__()
        self._path = path
        self._seconds = seconds

    def make_connection(self, host: Any) -> http.client.HTTPConnection:  # noqa: ANN401 - inherited
        # A connection for each request: XAPI closes what was idle for a while, and this is no busy client.
        self.close()
        self._connection = host, _UnixConnection(self._path, self._seconds)
        connection: http.client.HTTPConnection = self._connection[1]
        return connection

    def parse_response(self, response: Any) -> Any:  # noqa: ANN401 - inherited
        data = response.read(_LARGEST_ANSWER + 1)
        if len(data) > _LARGEST_ANSWER:
            raise xmlrpc.client.ResponseError("the answer is too large")
        parser, unmarshaller = self.getparser()
        parser.feed(data)
        parser.close()
        return unmarshaller.close()
