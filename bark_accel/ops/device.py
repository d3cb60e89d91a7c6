"""Differences between devices."""

from __future__ import annotations

import torch


def has_float64(device: torch.device) -> bool:
    """Tell whether tensors on a device may be float64: not on Apple's GPUs."""
    return device.type != "mps"


def options_dtype(device: torch.device) -> torch.dtype:
    """Dtype of the samplers' options (temperature, ...) on a device: float64, or float32 where there is no other."""
    return torch.float64 if has_float64(device) else torch.float32


def synchronize(device: torch.device) -> None:
    """Wait until everything that was asked of a device is done; on a CPU that is so already."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type != "cpu":
        torch.get_device_module(device).synchronize()
