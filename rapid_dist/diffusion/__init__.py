"""Diffusion: schedule, denoiser, loss, sampler, EMA. Knows no privacy, no retrieval, no cluster."""
