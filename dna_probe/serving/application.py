"""The routes of the service."""

# No postponed annotations: FastAPI evaluates those of the routes, whose types are imported inside the function.
import asyncio
import base64
import hashlib
import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dna_probe.detector import Detector, Prediction
from dna_probe.errors import DataError, DnaProbeError, NumericalError
from dna_probe.serving.batching import Batcher, Busy
from dna_probe.serving.explanation import explain, why_not
from dna_probe.serving.metrics import Metrics
from dna_probe.serving.server import PATIENCE
from dna_probe.serving.uploads import Gate, Limits, Refused, Upload, read_many, read_one

if TYPE_CHECKING:
    from fastapi import FastAPI
    from PIL import Image

ROUTES = frozenset({"/", "/predict", "/predict/batch", "/explain", "/health", "/metrics"})
# The page loads nothing from elsewhere and sends nothing elsewhere.
POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def model_version(path: Path, detector: Any) -> str:
    """What tells one detector from another: the first 12 digits of the SHA-256 of its manifest and arrays, or of the
    exported file, and of its backbone's weights."""
    digest = hashlib.sha256()
    for part in [path] if path.is_file() else [path / "manifest.json", path / "arrays.safetensors"]:
        with open(part, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    identity = detector.backbone.identity() if isinstance(detector, Detector) else detector.metadata["backbone"]
    return f"{digest.hexdigest()[:12]}-{identity['weight_hash'][:12]}"


def create_application(detector: Any, version: str, batcher: Batcher, metrics: Metrics, limits: Limits) -> "FastAPI":
    """The service around a detector.

    Args:
        detector: a ``Detector`` or an ``ExportedDetector``; it runs in the batcher's thread only.
        version: see ``model_version``.
        batcher: is closed, after it has answered all, when the application shuts down.
    """
    from fastapi import FastAPI, Request
    from fastapi.responses import HTMLResponse, JSONResponse, Response
    from starlette.exceptions import HTTPException

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(batcher.close, PATIENCE)

    # The pages that FastAPI makes of the schema load scripts from elsewhere.
    app = FastAPI(title="dna-probe", version=version, docs_url=None, redoc_url=None, lifespan=lifespan)
    app.add_middleware(Gate, limit=limits.bytes, routes=ROUTES, count=metrics.count_request)
    metrics.watch_queue(lambda: batcher.waiting)
    modality, page = detector.modality, files("dna_probe.serving").joinpath("page.html").read_text("utf-8")
    calibration = detector.anchor.calibration_ if isinstance(detector, Detector) else detector.calibration
    about = {
        "model_version": version,
        "backbone": detector.name,
        "modality": modality,
        "threshold": detector.threshold,
        "unsure": [calibration.low, calibration.high],
        "explain": why_not(detector) is None,
        "limits": {"bytes": limits.bytes, "pixels": limits.pixels, "files": limits.files},
    }

    async def judge(uploads: list[Upload]) -> list[Prediction]:
        """The verdicts; a sample on which the model fails, as where it overflows, gets the reason in place of one."""
        futures = batcher.submit(uploads)
        found = await asyncio.gather(*map(asyncio.wrap_future, futures), return_exceptions=True)
        predictions = []
        for upload, result in zip(uploads, found, strict=True):
            if isinstance(result, NumericalError):
                result = Prediction(upload.name, error=str(result))
            if isinstance(result, BaseException):
                raise result
            predictions.append(result)
        return predictions

    def counted(predictions: list[Prediction]) -> list[Prediction]:
        for prediction in predictions:
            metrics.count_sample(prediction)
        return predictions

    def answer(prediction: Prediction) -> dict[str, Any]:
        return {**prediction.to_json(), "model_version": version}

    @app.get("/", include_in_schema=False)
    async def show_page() -> HTMLResponse:
        return HTMLResponse(page, headers={"content-security-policy": POLICY, "x-content-type-options": "nosniff"})

    @app.get("/health", summary="Whether the service is ready, and what it serves")
    async def health() -> JSONResponse:
        return JSONResponse({"ready": True, **about})

    @app.get("/metrics", summary="Counters for Prometheus")
    async def show_metrics() -> Response:
        content, kind = metrics.render()
        return Response(content, media_type=kind)

    @app.post("/predict", summary="The verdict on one sample", openapi_extra=_body(modality, many=False))
    async def predict(request: Request) -> JSONResponse:
        (prediction,) = counted(await judge([await read_one(request, modality, limits)]))
        if prediction.error is not None:
            raise _unreadable(prediction)
        return JSONResponse(answer(prediction))

    @app.post("/predict/batch", summary="A verdict on each of many samples", openapi_extra=_body(modality, many=True))
    async def predict_batch(request: Request) -> JSONResponse:
        predictions = counted(await judge(await read_many(request, modality, limits)))
        return JSONResponse({"model_version": version, "predictions": [answer(p) for p in predictions]})

    @app.post("/explain", summary="What the detector looks at in one image", openapi_extra=_body(modality, many=False))
    async def explain_one(request: Request) -> JSONResponse:
        reason = why_not(detector)
        if reason is not None:
            raise Refused(404, "There is nothing to show of this detector", reason)
        upload = await read_one(request, modality, limits)
        # Not counted: what is explained was judged before.
        (prediction,) = await judge([upload])
        if prediction.error is not None:
            raise _unreadable(prediction)
        found = await asyncio.wrap_future(batcher.call(lambda: explain(detector, upload, upload.name)))
        shown = {"crop": _data_uri(found.crop), "patches": found.patches, "layers": found.layers}
        return JSONResponse({**answer(prediction), **shown})

    @app.exception_handler(DnaProbeError)
    async def refuse(request: Request, error: DnaProbeError) -> JSONResponse:
        return _error(_status(error), error.what, error.why, error.fix)

    @app.exception_handler(HTTPException)
    async def refuse_route(request: Request, error: HTTPException) -> JSONResponse:
        fix = f"There are {', '.join(sorted(ROUTES))}"
        return _error(error.status_code, f"{request.method} {request.url.path}: {error.detail}", "", fix)

    @app.exception_handler(Exception)
    async def fail(request: Request, error: Exception) -> JSONResponse:
        return _error(500, "The service failed", type(error).__name__, "Look into its log")

    def _error(status: int, what: str, why: str, fix: str) -> JSONResponse:
        return JSONResponse({"error": {"what": what, "why": why, "fix": fix}, "model_version": version}, status)

    return app


def _status(error: DnaProbeError) -> int:
    if isinstance(error, Refused):
        return error.status
    if isinstance(error, Busy):
        return 503
    return 422 if isinstance(error, DataError) else 500


def _unreadable(prediction: Prediction) -> Refused:
    return Refused(422, f"Cannot read {prediction.path}", prediction.error or "")


def _data_uri(image: "Image.Image") -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _body(modality: str, many: bool) -> dict[str, Any]:
    """What a route takes, for the schema of the service."""
    one = {"type": "string", "format": "binary"}
    form = {"file": {"type": "array", "items": one} if many else one}
    content: dict[str, Any] = {
        "multipart/form-data": {"schema": {"type": "object", "properties": form, "required": ["file"]}}
    }
    if not many:
        content |= {"application/octet-stream": {"schema": one}}
    return {"requestBody": {"required": True, "content": content}}
