"""Pretrained weights by timm name: from the local cache, else from the network, else a quick and clear refusal."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dna_probe.errors import BackboneError, one_line

if TYPE_CHECKING:
    from torch import nn

TIMEOUT = 5.0
WAYS_OUT = (
    "Give local weights (--weights FILE, weights=FILE), use 'nano', which needs no network, "
    "or take untrained weights (--random-weights, random_weights=True)"
)


def build_pretrained(name: str) -> nn.Module:
    """A timm model with its pretrained weights, in evaluation mode.

    The server is asked for a sign of life first (a few seconds): the clients would otherwise retry for minutes.

    Raises:
        BackboneError: timm has no weights for it, or they are neither cached nor within reach.
    """
    import timm

    cfg = timm.get_pretrained_cfg(name)
    if cfg is None or not cfg.has_weights:
        tagged = timm.list_models(f"{name.partition('.')[0]}.*", pretrained=True)
        raise BackboneError(
            f"timm has no pretrained weights for {name!r}", f"It has {', '.join(tagged)}" if tagged else "", WAYS_OUT
        )
    cached = is_cached(cfg)
    if not cached:
        require_server(name, cfg)
    try:
        with impatient(offline=cached):
            return timm.create_model(name, pretrained=True).eval()
    except Exception as error:
        raise BackboneError(
            f"The pretrained weights of {name!r} could not be loaded",
            one_line(error),
            WAYS_OUT,
        ) from error


def is_cached(cfg: Any) -> bool:
    """Whether the weights of a timm configuration are on this machine already."""
    if cfg.file or cfg.state_dict:
        return True
    if cfg.hf_hub_id:
        from huggingface_hub import try_to_load_from_cache

        repository, _, revision = cfg.hf_hub_id.partition("@")
        names = (cfg.hf_hub_filename, "model.safetensors", "open_clip_model.safetensors", "pytorch_model.bin")
        return any(
            isinstance(try_to_load_from_cache(repository, n, revision=revision or None), str) for n in names if n
        )
    from torch.hub import get_dir

    file = cfg.url[1] if isinstance(cfg.url, tuple | list) else str(cfg.url).rsplit("/", 1)[-1]
    return (Path(get_dir()) / "checkpoints" / file).is_file()


def require_server(name: str, cfg: Any) -> None:
    """Raise ``BackboneError`` if the server that has the weights does not answer within ``TIMEOUT`` seconds."""
    from urllib.error import HTTPError
    from urllib.request import Request, urlopen

    if cfg.hf_hub_id:
        from huggingface_hub import constants

        server = constants.ENDPOINT
        if constants.HF_HUB_OFFLINE:
            raise BackboneError(f"The weights of {name!r} are not in the cache", "HF_HUB_OFFLINE is set", WAYS_OUT)
    else:
        url = cfg.url[0] if isinstance(cfg.url, tuple | list) else cfg.url
        server = "/".join(str(url).split("/")[:3])
    try:
        urlopen(Request(server, method="HEAD"), timeout=TIMEOUT).close()
    except HTTPError:
        return  # it answered
    except (OSError, ValueError) as error:
        raise BackboneError(
            f"The weights of {name!r} are not in the cache and {server} cannot be reached",
            str(getattr(error, "reason", error)),
            WAYS_OUT,
        ) from error


@contextmanager
def impatient(offline: bool) -> Iterator[None]:
    """Short network timeouts inside the context, or no network at all; all put back after."""
    from huggingface_hub import constants

    settings = {"HF_HUB_ETAG_TIMEOUT": int(TIMEOUT), "HF_HUB_DOWNLOAD_TIMEOUT": int(2 * TIMEOUT)}
    if offline:
        settings["HF_HUB_OFFLINE"] = True
    before = {key: getattr(constants, key) for key in settings}
    socket_before = socket.getdefaulttimeout()
    try:
        for key, value in settings.items():
            setattr(constants, key, value)
        socket.setdefaulttimeout(2 * TIMEOUT)
        yield
    finally:
        for key, value in before.items():
            setattr(constants, key, value)
        socket.setdefaulttimeout(socket_before)
