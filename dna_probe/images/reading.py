"""One image in, one RGB image or a plain reason out."""

from __future__ import annotations

import hashlib
import io
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageCms, UnidentifiedImageError

from dna_probe.errors import UnreadableSample
from dna_probe.images.sources import StoredImage, is_stored

if TYPE_CHECKING:
    import torch

    Source = Path | str | bytes | StoredImage | Image.Image | np.ndarray | torch.Tensor
else:
    Source = Any

MAX_PIXELS = 100_000_000
MIN_SIDE = 8

# Left to itself Pillow also opens formats that start other programs (EPS) or that are not photographs.
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "TIFF", "BMP", "AVIF", "JPEG2000", "PPM", "TGA", "HEIF")

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION = 0x0112


class UnreadableImage(UnreadableSample):
    """One image cannot be used."""


def read_image(source: Source, max_pixels: int = MAX_PIXELS, name: str | None = None) -> Image.Image:
    """The image as RGB, 8 bits per channel, upright, in sRGB.

    `source` is a path, the bytes of an image file, a `StoredImage`, a PIL image, an array (H, W), (H, W, 1), (H, W, 3)
    or (H, W, 4) of uint8, uint16, bool or float in 0..1, or a torch tensor (1, H, W), (3, H, W) or (4, H, W) of the
    same kinds.

    The EXIF orientation is applied. A colour profile other than sRGB is converted; a profile that does not fit the
    pixels is ignored, as browsers do. Transparency is laid on white, the page on which such images are looked at.
    16-bit values are divided by 257. Of an animated file the first frame is taken.

    Raises `UnreadableImage` for whatever cannot be shown truthfully: missing, empty, foreign or truncated files, more
    than `max_pixels` pixels (taken from the header, before anything is decoded), a side below 8 pixels, pixel values
    without a defined white. It never returns a substitute.
    """
    name = name_of(source, None) if name is None else name
    if isinstance(source, str | Path | bytes | bytearray):
        return _decode(source, name, max_pixels)
    if is_stored(source):
        try:
            content = source.read_bytes()
        except OSError as error:
            raise UnreadableImage(name, f"cannot be opened ({_words(error)})") from None
        return _decode(content, name, max_pixels)
    if isinstance(source, Image.Image):
        return _finish(source, name, max_pixels)
    if isinstance(source, np.ndarray):
        return _from_array(source, name, max_pixels)
    if _is_tensor(source):
        return _from_tensor(source, name, max_pixels)
    raise UnreadableImage(name, f"a {type(source).__name__} is not an image, a path or an array")


def name_of(source: Source, position: int | None) -> str:
    """What to call an image in messages and reports: its path as given, or its place in the list."""
    if isinstance(source, str | Path):
        return str(source)
    if is_stored(source):
        return source.name
    file = getattr(source, "filename", "")
    if isinstance(file, str | Path) and str(file):
        return str(file)
    return "the image" if position is None else f"images[{position}]"


def content_hash(source: Source) -> str:
    """SHA-256 (hex) of what the image holds: the bytes of a file, the pixels of an image in memory.

    Moving or renaming a file does not change it. A file that is missing or cannot be decoded hashes by its name, so
    that a set that contains one still has a fingerprint.
    """
    digest = hashlib.sha256()
    try:
        if isinstance(source, str | Path):
            with open(source, "rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        if isinstance(source, bytes | bytearray):
            return hashlib.sha256(source).hexdigest()
        if is_stored(source):
            return hashlib.sha256(source.read_bytes()).hexdigest()
        if isinstance(source, Image.Image):
            source.load()
            turn = _orientation(source)
            # The indices of a palette image say nothing without its palette.
            image = source.convert("RGBA") if source.mode in ("P", "PA") else source
            digest.update(f"{image.mode} {image.size} {turn} ".encode())
            digest.update(image.tobytes())
        else:
            array = _tensor_array(source) if _is_tensor(source) else np.asarray(source)
            digest.update(f"{array.dtype.str} {array.shape} ".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
    except (OSError, SyntaxError, ValueError, EOFError, UnreadableImage):
        digest = hashlib.sha256(f"unreadable {name_of(source, None)}".encode())
    return digest.hexdigest()


def _decode(source: str | Path | bytes | bytearray, name: str, max_pixels: int) -> Image.Image:
    if isinstance(source, str | Path):
        path = Path(source)
        if path.is_dir():
            raise UnreadableImage(name, "a folder, not an image")
        try:
            size = path.stat().st_size
        except FileNotFoundError:
            raise UnreadableImage(name, "no such file") from None
        except (OSError, ValueError) as error:
            raise UnreadableImage(name, f"cannot be opened ({_words(error)})") from None
        if not path.is_file():
            raise UnreadableImage(name, "not a plain file")
        stream: Any = path
    else:
        size, stream = len(source), io.BytesIO(source)
    if size == 0:
        raise UnreadableImage(name, "empty file (0 bytes)")
    Image.init()
    try:
        with Image.open(stream, formats=[known for known in FORMATS if known in Image.OPEN]) as image:
            return _finish(image, name, max_pixels)
    except UnidentifiedImageError:
        raise UnreadableImage(name, "not an image: the content is no image format known here") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise UnreadableImage(name, "too many pixels for Pillow's own limit") from None
    except PermissionError:
        raise UnreadableImage(name, "no permission to read it") from None
    except UnreadableImage:
        raise
    except (OSError, SyntaxError, ValueError, EOFError, struct.error) as error:
        raise UnreadableImage(name, _damage(error)) from None


def _finish(image: Image.Image, name: str, max_pixels: int) -> Image.Image:
    require_size(*image.size, name, max_pixels)
    try:
        image.load()
    except MemoryError:
        raise UnreadableImage(name, "does not fit in memory") from None
    except Exception as error:  # decoders raise anything on damaged data: struct.error, KeyError, zlib.error, ...
        raise UnreadableImage(name, _damage(error)) from None
    turn = _TURNS.get(_orientation(image))
    try:
        rgb = _to_rgb(image, name)
    except UnreadableImage:
        raise
    except (OSError, ValueError, KeyError) as error:
        raise UnreadableImage(name, f"mode {image.mode} cannot be converted ({_words(error)})") from None
    if turn is not None:
        rgb = rgb.transpose(turn)
    elif rgb is image:
        rgb = image.copy()
    # What is left in `info` (profile, EXIF, transparency) no longer describes these pixels.
    rgb.info = {}
    return rgb


def require_size(width: int, height: int, name: str, max_pixels: int) -> None:
    """Raises ``UnreadableImage`` for an image of more pixels than that, or of a side that is too small."""
    if width * height > max_pixels:
        reason = f"too many pixels: {width} x {height} is more than the limit of {max_pixels / 1e6:g} million"
        raise UnreadableImage(name, reason)
    if min(width, height) < MIN_SIDE:
        raise UnreadableImage(name, f"too small: {width} x {height}, and a side needs at least {MIN_SIDE} pixels")


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # a damaged EXIF block says nothing about the pixels
        return 1


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    mode = image.mode
    if mode.startswith(("I", "F")):
        return _from_deep(np.asarray(image), name, mode)
    profile = image.info.get("icc_profile")
    if mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        opaque = image.convert("L").convert("RGB") if mode in ("LA", "La") else rgba.convert("RGB")
        colour = _to_srgb(opaque, profile)
        white = Image.new("RGB", image.size, (255, 255, 255))
        white.paste(colour, mask=rgba.getchannel("A"))
        return white
    if mode == "P":
        return _to_srgb(image.convert("RGB"), profile)
    return _to_srgb(image, profile)


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    if profile:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            # A pass from sRGB to sRGB would only add rounding, and the traces looked for are that small.
            if not (image.mode == "RGB" and "sRGB" in ImageCms.getProfileDescription(source)):
                target = ImageCms.createProfile("sRGB")
                converted = ImageCms.profileToProfile(image, source, target, outputMode="RGB")
                if converted is not None:
                    return converted
        except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
            pass
    return image if image.mode == "RGB" else image.convert("RGB")


def _from_deep(values: np.ndarray, name: str, mode: str) -> Image.Image:
    """Grey pixels of 16 bits, or 32 bits where their values tell the scale."""
    low, high = float(values.min()), float(values.max())
    if mode.startswith("F"):
        if not (np.isfinite(low) and np.isfinite(high)):
            raise UnreadableImage(name, "floating-point pixels that are not finite")
        if low < 0 or high > 1:
            raise UnreadableImage(name, f"floating-point pixels must lie in 0..1, found {low:g} to {high:g}")
        grey = np.rint(values.astype(np.float64) * 255)
    else:
        if low < 0 or high > 65535:
            raise UnreadableImage(name, f"integer pixels beyond 16 bits ({low:g} to {high:g}) have no defined white")
        grey = np.rint(values.astype(np.float64) / 257)
    return Image.fromarray(grey.astype(np.uint8)).convert("RGB")


def _from_array(array: np.ndarray, name: str, max_pixels: int) -> Image.Image:
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        reason = f"an array of shape {array.shape} is not an image: give (H, W), (H, W, 3) or (H, W, 4)"
        raise UnreadableImage(name, reason)
    require_size(array.shape[1], array.shape[0], name, max_pixels)
    pixels = _eight_bits(array, name)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    return _to_rgb(Image.fromarray(np.ascontiguousarray(pixels)), name).copy()


def _eight_bits(array: np.ndarray, name: str) -> np.ndarray:
    kind = array.dtype.kind
    if array.dtype == np.uint8:
        return array
    if kind == "b":
        return array.astype(np.uint8) * 255
    if array.dtype == np.uint16:
        return np.rint(array / 257.0).astype(np.uint8)
    if kind not in "iuf":
        raise UnreadableImage(name, f"an array of {array.dtype} is not an image")
    low, high = float(array.min()), float(array.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise UnreadableImage(name, "pixel values that are not finite")
    top = 1.0 if kind == "f" else 255.0
    # Interpolation in single precision may step over the ends by a rounding error, no more.
    slack = 1e-3 if kind == "f" else 0.0
    if low < -slack or high > top + slack:
        reason = f"{array.dtype} pixel values must lie in 0..{top:g}, found {low:g} to {high:g}"
        raise UnreadableImage(name, reason)
    scaled = array.astype(np.float64) * (255.0 / top)
    return np.rint(np.clip(scaled, 0, 255)).astype(np.uint8)


def _is_tensor(source: object) -> bool:
    return type(source).__module__.split(".")[0] == "torch" and hasattr(source, "detach")


def _tensor_array(tensor: Any) -> np.ndarray:
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.dtype.is_floating_point else tensor).numpy()


def _from_tensor(tensor: Any, name: str, max_pixels: int) -> Image.Image:
    if tensor.ndim != 3 or tensor.shape[0] not in (1, 3, 4):
        raise UnreadableImage(name, f"a tensor of shape {tuple(tensor.shape)} is not an image: give (3, H, W)")
    return _from_array(np.moveaxis(_tensor_array(tensor), 0, -1), name, max_pixels)


def _damage(error: BaseException) -> str:
    if any(word in str(error).lower() for word in ("truncated", "unexpected end", "broken data stream")):
        return f"truncated: the file ends too early ({_words(error)})"
    return f"damaged: it cannot be decoded ({_words(error)})"


def _words(error: BaseException) -> str:
    """The decoder's own words, short and on one line."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    text = " ".join(text.split())
    return text if len(text) <= 80 else text[:77] + "..."
