"""Models of Hugging Face transformers: opened by id or folder, the part that is probed, and what lies beside them."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from dna_probe.backbones import download, plain, timm
from dna_probe.backbones.image_processors import read_processor
from dna_probe.backbones.transformer_attention import is_transformers, main_input
from dna_probe.backbones.weights import SUFFIXES, read_state
from dna_probe.errors import BackboneError, one_line

if TYPE_CHECKING:
    from torch import nn

    from dna_probe.batches import Reader

PREFIXES = ("hf:", "hf-hub:", "hf_hub:")
# What is fetched: configurations, tokenisers and safetensors, nothing that could run.
_SETTINGS = ("*.json", "*.txt", "*.model")
FILES = (*_SETTINGS, "model.safetensors", "model-*.safetensors")
# Parts behind the last block, which a checkpoint may lack: they are never read.
HEADS = ("pooler", "head", "classifier")
# Put in place of what is hidden in training, and never read either.
_MASKS = ("masked_spec_embed", "mask_token")
# By any of which it is known that such a thing lies in a folder.
_PROCESSORS = ("preprocessor_config.json", "processor_config.json")
_TOKENISERS = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "tokenizer.model", "spiece.model")
_SAFE = "Save it as safetensors (model.save_pretrained(...)), or take untrained weights (random_weights=True)"
_WAYS_OUT = (
    "Fetch it where there is a network (hf download ID) and give its folder as hf:FOLDER, "
    "or use 'nano', which needs no network"
)

is_own = is_transformers


def name_of(model: nn.Module) -> str:
    """The id that the model was loaded by, the name of its folder, or its class name."""
    name = _loaded_from(model)
    return (Path(name).name if Path(name).is_dir() else name) or type(model).__name__


def _loaded_from(model: nn.Module) -> str:
    name = getattr(getattr(model, "config", None), "_name_or_path", "")
    return "" if name in (None, "None") else str(name)


# Opening by name


def build(name: str, weights: str | Path | None, random_weights: bool) -> tuple[nn.Module, str]:
    """The whole model that ``hf:<id>``, ``hf:<id>@<revision>`` or ``hf:<folder>`` names, and what opens it again.

    Weights are read from safetensors in single precision, or from the file given; untrained ones are the same on every
    call. What a checkpoint leaves out behind the blocks (a pooler) is untrained in the same way. Code that comes with a
    model is never run.

    Raises:
        BackboneError: no such folder or repository, out of reach, no safetensors, of unknown architecture, or the
            weights do not fit.
    """
    import torch
    from transformers import AutoConfig, AutoModel

    folder, spec = _locate(name.partition(":")[2], weights is None and not random_weights)
    settings: dict[str, Any] = {"trust_remote_code": False}
    missing: set[str] = set()
    try:
        with _quiet(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(timm.SEED)
            config = AutoConfig.from_pretrained(folder, local_files_only=True, **settings)
            if weights is None and not random_weights:
                model, report = AutoModel.from_pretrained(
                    folder,
                    config=config,
                    dtype=torch.float32,
                    use_safetensors=True,
                    local_files_only=True,
                    output_loading_info=True,
                    **settings,
                )
                missing = set(report["missing_keys"])
            else:
                model = AutoModel.from_config(config, dtype=torch.float32, **settings)
            if weights is not None:
                # Through transformers again, which knows how names have changed between its versions.
                model, report = type(model).from_pretrained(
                    None, config=config, state_dict=read_state(weights), dtype=torch.float32, output_loading_info=True
                )
                missing = set(report["missing_keys"])
                model.config._name_or_path = str(folder)
    except BackboneError:
        raise
    except Exception as error:
        raise _unloadable(name, folder, error) from error
    _refuse_missing(name if weights is None else Path(weights).name, model, missing)
    return model.eval(), spec


def _locate(name: str, weights: bool) -> tuple[Path, str]:
    """A folder that holds the model, and the ``hf:`` name that stands for exactly this one."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise BackboneError(
                f"{folder} holds no transformers model",
                "There is no config.json in it",
                "Give a folder that model.save_pretrained(...) wrote",
            )
        if weights and not _has_weights(folder):
            raise BackboneError(f"{folder} holds no safetensors weights", _other_weights(folder), _SAFE)
        return folder.resolve(), f"hf:{folder.resolve()}"
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    repository, _, revision = name.partition("@")
    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise BackboneError(
            f"There is no folder {name}", "", "Give an existing folder as hf:FOLDER, or a model of the hub as hf:ID"
        ) from error
    cached = _cached(repository, revision, weights)
    folder = cached or _download(repository, revision, FILES)
    if cached and not any((cached / file).is_file() for file in (*_PROCESSORS, *_TOKENISERS)):
        # Whoever loaded the model alone has no processor or tokeniser there yet.
        with suppress(BackboneError):
            _download(repository, folder.name, _SETTINGS)
    if weights and not _has_weights(folder):
        raise BackboneError(
            f"{repository} has no safetensors weights", "Other formats could run code and are not read", _SAFE
        )
    return folder, f"hf:{repository}@{folder.name}"


def _has_weights(folder: Path) -> bool:
    """Whether all safetensors files of a model are in a folder."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return (folder / "model.safetensors").is_file()
    try:
        return all((folder / file).is_file() for file in set(json.loads(index.read_text())["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, OSError):
        return False


def _other_weights(folder: Path) -> str:
    found = sorted(file.name for file in folder.iterdir() if file.suffix in (".bin", *SUFFIXES))
    return f"It holds {', '.join(found[:3])}, and other formats could run code" if found else ""


def _cached(repository: str, revision: str, weights: bool) -> Path | None:
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(repository, revision=revision or None, local_files_only=True))
    except (OSError, ValueError):
        return None
    return folder if (folder / "config.json").is_file() and (not weights or _has_weights(folder)) else None


def _download(repository: str, revision: str, files: tuple[str, ...]) -> Path:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        # Before the client, which would retry for minutes.
        download.require_server(f"hf:{repository}", SimpleNamespace(hf_hub_id=repository))
    except BackboneError as error:
        raise BackboneError(error.what, error.why, _WAYS_OUT) from error
    try:
        with download.impatient(offline=False):
            return Path(snapshot_download(repository, revision=revision or None, allow_patterns=list(files)))
    except Exception as error:
        fix = _WAYS_OUT
        if isinstance(error, GatedRepoError):
            fix = f"Accept its terms on {constants.ENDPOINT}/{repository} and log in with hf auth login"
        elif isinstance(error, RepositoryNotFoundError | RevisionNotFoundError):
            fix = "Check its name and revision; a private one needs hf auth login, a folder has to exist"
        raise BackboneError(
            f"{repository!r} could not be fetched from {constants.ENDPOINT}", one_line(error), fix
        ) from error


def _unloadable(name: str, folder: Path, error: Exception) -> BackboneError:
    if "custom code" in str(error):
        return BackboneError(
            f"{name!r} cannot be opened",
            "It needs code that comes with it, and such code is not run",
            "Build it in a factory file.py:factory of your own",
        )
    return BackboneError(
        f"{name!r} could not be loaded",
        one_line(error),
        f"Check that {folder} is whole and that this version of transformers knows the architecture",
    )


def _refuse_missing(name: str, model: nn.Module, missing: set[str]) -> None:
    """Raise ``BackboneError`` if parts that are read have no weights; transformers would leave them random."""
    inside = "vision_model." if _vision_tower(model) is not None else ""
    needed = sorted(
        key
        for key in missing
        if key.startswith(inside)
        and key.removeprefix(inside).split(".")[0] not in HEADS
        and key.rpartition(".")[2] not in _MASKS
    )
    if needed:
        shown = ", ".join(needed[:3]) + (", ..." if len(needed) > 3 else "")
        raise BackboneError(
            f"{name} does not fit {type(model).__name__}",
            f"{len(needed)} tensors are missing ({shown})",
            "Open the architecture that the weights were made for",
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Neither warnings nor bars of transformers inside the context: what matters in them becomes an error of ours."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


# Towers


def tower(model: nn.Module) -> tuple[nn.Module, tuple[str, ...]]:
    """The part of a model that is probed, and a note where that is not all of it.

    Models of two towers (CLIP, SigLIP) give that for images, models with a decoder behind an encoder (Whisper, T5) the
    encoder, wrappers of timm the model in them.

    Raises:
        BackboneError: it takes patches cut to a size of their own for every image, not images (NaFlex), or hides some
            at random (MAE).
    """
    from torch import nn

    inner = getattr(model, "timm_model", None)
    if isinstance(inner, nn.Module):
        return inner, ()
    part, name = _vision_tower(model), "tower for images"
    if part is None and getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        encoder: Any = getattr(model, "get_encoder", lambda: None)()
        part, name = (encoder if isinstance(encoder, nn.Module) and encoder is not model else None), "encoder"
    notes = () if part is None else (f"of {type(model).__name__} the {name} is probed",)
    part = model if part is None else part
    takes = inspect.signature(part.forward).parameters
    if "spatial_shapes" in takes:
        raise BackboneError(
            f"{type(model).__name__} cannot be probed",
            "It takes sequences of patches of changing size (NaFlex), not images",
            "Open the version of fixed resolution, for example google/siglip2-base-patch16-224",
        )
    # Hiera hides patches before its decoder alone.
    hides = getattr(getattr(part, "config", None), "mask_ratio", None)
    if "noise" in takes and hides and getattr(getattr(part, "embeddings", None), "is_mae", True):
        vit = type(model).__name__.startswith("ViTMAE")
        raise BackboneError(
            f"{type(model).__name__} cannot be probed",
            "It hides most patches at random, others on every call",
            f"Open its encoder alone, without hiding{': transformers.ViTModel.from_pretrained(ID)' if vit else ''}",
        )
    return part, notes


def _vision_tower(model: nn.Module) -> nn.Module | None:
    from torch import nn

    vision = getattr(model, "vision_model", None)
    return vision if isinstance(vision, nn.Module) and main_input(model) != "pixel_values" else None


# Preprocessing


def preprocessing_of(model: nn.Module) -> tuple[Reader, tuple[str, ...]]:
    """By the image processor, tokeniser or feature extractor that lies beside the model's weights.

    For images an assumed one and a note that says so, where none lies there; for texts and sounds nothing can be
    assumed.

    Raises:
        BackboneError: none lies there, it cannot be loaded, or it does what ``Preprocessing`` cannot.
    """
    from dna_probe.audio.preprocessing import AudioPreprocessing
    from dna_probe.texts.preprocessing import MAX_LENGTH, TextPreprocessing

    part, _ = tower(model)
    takes, folder = main_input(part), _folder_of(model)
    if takes == "pixel_values":
        processor = _beside(folder, "AutoImageProcessor", _PROCESSORS)
        if processor is None:
            return (timm if timm.is_timm(part) else plain).preprocessing_of(part)
        return read_processor(processor)
    if takes == "input_ids":
        tokeniser = _beside(folder, "AutoTokenizer", _TOKENISERS)
        if tokeniser is not None:
            return TextPreprocessing(tokeniser, max_length=min(_positions(part) or MAX_LENGTH, MAX_LENGTH)), ()
        raise _alone(model, "token numbers, and its tokeniser", "TextPreprocessing(tokeniser)")
    if takes in ("input_values", "input_features"):
        extractor = _beside(folder, "AutoFeatureExtractor", _PROCESSORS)
        if extractor is not None:
            return AudioPreprocessing(extractor), ()
        raise _alone(model, "sounds, and its feature extractor", "AudioPreprocessing(extractor)")
    raise BackboneError(f"{type(model).__name__} takes {takes}, which is neither images, texts nor sounds")


def _positions(part: nn.Module) -> int | None:
    """How many tokens a model of texts has positions for, None where it does not say."""
    most = getattr(getattr(part, "config", None), "max_position_embeddings", None)
    tables = (table for name, table in part.named_modules() if name.rpartition(".")[2] == "position_embeddings")
    padding = getattr(next(tables, None), "padding_idx", None)
    # RoBERTa and its kin count from behind the position of padding.
    return most if most is None or padding is None else most - padding - 1


def _alone(model: nn.Module, wants: str, given: str) -> BackboneError:
    return BackboneError(
        f"{type(model).__name__} takes {wants} does not lie beside it",
        "",
        f"Save both in one folder and open it as hf:FOLDER, or pass preprocessing={given}",
    )


def _beside(folder: Path | None, loader: str, files: tuple[str, ...]) -> Any:
    """What a class of transformers loads from the folder, or None where none of its files is there."""
    import transformers

    if folder is None or not any((folder / file).is_file() for file in files):
        return None
    try:
        with _quiet():
            return getattr(transformers, loader).from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        kind = {"AutoImageProcessor": "image processor", "AutoTokenizer": "tokeniser"}.get(loader, "feature extractor")
        raise BackboneError(
            f"The {kind} in {folder} could not be loaded",
            one_line(error),
            "Save it there again, or pass preprocessing=",
        ) from error


def _folder_of(model: nn.Module) -> Path | None:
    """Where the files of a model lie on this machine; nothing is fetched."""
    name = _loaded_from(model)
    if not name:
        return None
    folder = Path(name)
    return folder if folder.is_dir() else _cached(name, getattr(model.config, "_commit_hash", None) or "", False)
