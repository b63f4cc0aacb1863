"""The embedded backbone: a small vision transformer pretrained on formula-drawn images only (see `recipes/nano`)."""

from importlib.resources import as_file, files
from typing import TYPE_CHECKING, Any

from dna_probe.errors import BackboneError

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer

SIZE = 128
ARCHITECTURE: dict[str, Any] = {"patch_size": 8, "embed_dim": 96, "depth": 10, "num_heads": 3}
PRETRAINED_CFG: dict[str, Any] = {
    "architecture": "dna_probe_nano",
    "input_size": (3, SIZE, SIZE),
    # Short side to 160, centre 128: the probe set has crops of 160, which resampling would rob of traces.
    "crop_pct": 0.8,
    "interpolation": "bicubic",
    "mean": (0.5, 0.5, 0.5),
    "std": (0.5, 0.5, 0.5),
}
WEIGHTS = "weights.safetensors"


def network(img_size: int = SIZE, num_classes: int = 0) -> "VisionTransformer":
    """The architecture with random weights, drawn from torch's global generator."""
    from timm.models.vision_transformer import VisionTransformer

    # timm's default initialisation is made for wide models; at this width its signal all but dies in ten blocks.
    model = VisionTransformer(img_size=img_size, num_classes=num_classes, weight_init="jax", **ARCHITECTURE)
    model.pretrained_cfg = dict(PRETRAINED_CFG)  # type: ignore[assignment]  # timm keeps a plain dict here too
    return model


def build() -> "VisionTransformer":
    """The pretrained network in evaluation mode, float32, without a classification head."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        with as_file(files(__name__) / WEIGHTS) as path:
            weights = load_file(path)
    except (OSError, SafetensorError) as error:
        raise BackboneError(
            "The weights of nano cannot be read",
            f"{WEIGHTS} is missing or damaged ({error})",
            "Reinstall dna_probe, or make the file anew with recipes/nano/train.py",
        ) from error
    model = network()
    try:
        # Half precision on disk only: computing in it would be slow and imprecise on a CPU.
        model.load_state_dict({name: value.float() for name, value in weights.items()}, strict=True)
    except RuntimeError as error:
        raise BackboneError(
            "The weights of nano do not fit its architecture",
            " ".join(str(error).split()),
            "Reinstall dna_probe, or make the file anew with recipes/nano/train.py",
        ) from error
    return model.eval()
