"""Which files a bundle cannot be drawn from without; a verifier asks, who has no torch."""

from collections.abc import Mapping
from typing import Any

PUBLIC = "public"  # Folder of the bundle.
KNOWLEDGE = "knowledge.npz"
_NETWORK = ("denoiser.json", "unet/config.json", "unet/diffusion_pytorch_model.safetensors")
_EXTRACTOR = ("extractor.json", "extractor.safetensors")


def needed_files(model: Mapping[str, Any]) -> list[str]:
    """Returns the files that sampling as model.json says cannot do without, by their paths."""
    if model["source"] == "prior":
        return [*_NETWORK, "prior.npz", "references.npz"]
    if model["source"] == "answers":
        return [*_NETWORK, "answers.npz"]
    if model["source"] != "query":
        return [*_NETWORK]
    asked = _EXTRACTOR if model["query"]["keys"] == "contrast" else ()
    return [*_NETWORK, *(f"{PUBLIC}/{name}" for name in (*_NETWORK, KNOWLEDGE, *asked))]
