"""What comes with a request: its samples, within the limits, or a refusal that says what to do."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dna_probe.errors import DnaProbeError

if TYPE_CHECKING:
    from starlette.requests import Request

# What a raw body may be called, besides application/octet-stream.
MEDIA = {"image": "image/", "text": "text/", "audio": "audio/"}
FIELDS = ("file", "files")
# Bytes of all requests that are not answered yet; what comes beyond is refused, so that a crowd cannot fill the memory.
MAX_HELD = 1 << 30
# Where the gate leaves the last bytes of a body: by them a form shows whether it is whole.
TAIL, TAIL_BYTES = "dna_probe.tail", 64


class Refused(DnaProbeError):
    """A request that is not served; ``status`` is that of the answer."""

    def __init__(self, status: int, what: str, why: str = "", fix: str = ""):
        self.status = status
        super().__init__(what, why, fix)


@dataclass(frozen=True)
class Limits:
    """What a request may hold.

    Attributes:
        bytes: of a request's body.
        pixels: of an image, by its header.
        files: in a request.
    """

    bytes: int = 64 << 20
    pixels: int = 50_000_000
    files: int = 64


@dataclass(frozen=True)
class Upload:
    """A sample that came with a request: a stored source, see ``images.sources``."""

    name: str
    content: bytes = field(repr=False)
    max_pixels: int | None = None

    def read_bytes(self) -> bytes:
        """Raises ``UnreadableImage`` for an image of more than ``max_pixels`` pixels, before anything is decoded."""
        if self.max_pixels is not None:
            self._check_pixels(self.max_pixels)
        return self.content

    def _check_pixels(self, limit: int) -> None:
        from PIL import Image

        from dna_probe.images.reading import FORMATS, require_size

        Image.init()
        try:
            with Image.open(io.BytesIO(self.content), formats=[f for f in FORMATS if f in Image.OPEN]) as image:
                width, height = image.size
        except Exception:  # the reader says why it is no image
            return
        require_size(width, height, self.name, limit)


async def read_one(request: Request, modality: str, limits: Limits) -> Upload:
    """The sample of a request: the multipart field ``file``, or the body itself.

    Raises:
        Refused: 415 for a content type that holds no sample, 422 for a form without exactly one file.
    """
    from starlette.requests import ClientDisconnect

    kind = _content_type(request)
    if kind == "multipart/form-data":
        found = await read_many(request, modality, limits)
        if len(found) != 1:
            raise Refused(422, f"{len(found)} files came, and one is judged here", "", "Send many to /predict/batch")
        return found[0]
    if kind != "application/octet-stream" and not kind.startswith(MEDIA[modality]):
        raise _wrong_type(kind, f"Send multipart/form-data with a field 'file', or the bytes as {MEDIA[modality]}*")
    try:
        content = await request.body()
    except ClientDisconnect:
        raise _gone() from None
    return Upload(request.query_params.get("name") or modality, content, _pixels(modality, limits))


async def read_many(request: Request, modality: str, limits: Limits) -> list[Upload]:
    """The files of a multipart form, in order.

    Raises:
        Refused: 415 where it is no form, 422 where it is damaged, cut off or holds no file, 413 where it holds too
            many, 499 where the client went away.
    """
    from starlette.datastructures import UploadFile
    from starlette.exceptions import HTTPException
    from starlette.requests import ClientDisconnect

    kind = _content_type(request)
    if kind != "multipart/form-data":
        raise _wrong_type(kind, "Send multipart/form-data with a field 'file' for each")
    try:
        # The body is bounded already; more files than are allowed are counted below, to say how many.
        async with request.form(max_files=100_000, max_fields=1000) as form:
            files = [(key, value) for key, value in form.multi_items() if isinstance(value, UploadFile)]
            strange = sorted({key for key, _ in form.multi_items() if key not in FIELDS})
            if strange:
                raise Refused(422, f"The form has a field {strange[0]!r}", "", "Name the field of each file 'file'")
            if not request.scope.get(TAIL, b"").rstrip().endswith(b"--"):
                raise Refused(422, "The form is cut off", "It lacks its last boundary", "Send it whole")
            if not files:
                raise Refused(422, "The form holds no file", "", "Send it as a file, in a field named 'file'")
            if len(files) > limits.files:
                raise Refused(413, f"{len(files)} files came, and {limits.files} are the limit", "", "Send fewer")
            pixels = _pixels(modality, limits)
            return [Upload(file.filename or modality, await file.read(), pixels) for _, file in files]
    except ClientDisconnect:
        raise _gone() from None
    except HTTPException as error:
        raise Refused(422, "The form cannot be read", str(error.detail), "Send multipart/form-data") from None


def _gone() -> Refused:
    # Nobody reads the answer; the number is that of proxies, for the metrics.
    return Refused(499, "The client went away")


def _pixels(modality: str, limits: Limits) -> int | None:
    return limits.pixels if modality == "image" else None


def _content_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def _wrong_type(kind: str, fix: str) -> Refused:
    return Refused(415, f"The content type {kind or '(none)'} cannot be read here", "", fix)


class Gate:
    """ASGI middleware: bounds each body while it comes, and all that are held; counts and times each request.

    A body counts as held until its request is answered, since its samples wait in memory until then.

    Args:
        app: the application behind it.
        limit: most bytes of a body.
        routes: paths told apart when counting.
        count: called with route, status and seconds once a request is over.
    """

    def __init__(self, app: Any, limit: int, routes: frozenset[str], count: Any):
        self.app, self.limit, self.routes, self.count = app, limit, routes, count
        self.held = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        from time import perf_counter

        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status, came = perf_counter(), 500, 0
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        announced = int(declared) if declared.isdigit() else 0

        async def bounded() -> Any:
            nonlocal came
            if announced > self.limit:
                raise self._too_large()
            message = await receive()
            body = message.get("body", b"")
            came += len(body)
            self.held += len(body)
            if came > self.limit:
                raise self._too_large()
            if self.held > max(MAX_HELD, self.limit):
                size = f"{(self.held - came) / (1 << 20):.0f} MiB of other requests wait already"
                raise Refused(503, "The service is busy", size, "Try again in a while")
            scope[TAIL] = (scope.get(TAIL, b"") + body)[-TAIL_BYTES:]
            return message

        async def noted(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, bounded, noted)
        finally:
            self.held -= came
            route = scope["path"] if scope["path"] in self.routes else "other"
            self.count(route, status, perf_counter() - started)

    def _too_large(self) -> Refused:
        size = f"{self.limit / (1 << 20):g} MiB" if self.limit >= 1 << 20 else f"{self.limit} bytes"
        return Refused(413, "The request is too large", f"{size} are the limit", "Send fewer or smaller files")
