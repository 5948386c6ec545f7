"""The denoising loss, one number a row.

A row is one noised image with its noise level, its label and the clean image it should lead to.
"""

from dataclasses import dataclass

import torch

from rapid_dist.diffusion.denoiser import Denoiser, weights_of


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Inputs and targets of R denoising tasks."""

    noised: torch.Tensor  # float32 [R, C, H, W]
    noise_level: torch.Tensor  # float32 [R]
    labels: torch.Tensor  # int64 [R]
    clean: torch.Tensor  # float32 [R, C, H, W], the target

    def __len__(self) -> int:
        return len(self.noised)

    def __getitem__(self, rows: slice) -> "Rows":
        return Rows(
            noised=self.noised[rows],
            noise_level=self.noise_level[rows],
            labels=self.labels[rows],
            clean=self.clean[rows],
        )

    def to(self, device: torch.device) -> "Rows":
        """Returns these rows on another device."""
        return Rows(
            noised=self.noised.to(device),
            noise_level=self.noise_level.to(device),
            labels=self.labels.to(device),
            clean=self.clean.to(device),
        )


def row_losses(denoiser: Denoiser, rows: Rows) -> torch.Tensor:
    """Weighted squared error of each row, float32 [R] (Karras et al. 2022, Eq. 2).

    A row's loss depends on that row alone: no statistic of the batch enters, which is what a
    per-example clip needs.
    """
    estimate: torch.Tensor = denoiser(rows.noised, rows.noise_level, rows.labels)
    error = (estimate - rows.clean).square().flatten(1).mean(dim=1)
    return weights_of(rows.noise_level, denoiser.data_std) * error
