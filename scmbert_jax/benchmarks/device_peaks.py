"""Peak arithmetic of the devices that MFU is stated for: dense matrix products, in operations per second.

From the vendors' data sheets (dense, no sparsity), bfloat16 with float32 sums. NVIDIA computes float32 products in
TF32 only if it is told to; we do not, so there is no peak of float32 here.
"""

import jax

# A part of `jax.Device.device_kind`, in lower case -> bfloat16 operations per second and device.
BF16_PEAKS = {
    "h200": 989.5e12,
    "h100 pcie": 756e12,
    "h100": 989.5e12,
    "a100": 312e12,
    "tpu v5 lite": 197e12,
    "tpu v5e": 197e12,
    "tpu v5p": 459e12,
    "tpu v5": 459e12,  # what a v5p calls itself
    "tpu v6 lite": 918e12,
    "tpu v6e": 918e12,
}


def peak_flops(device: jax.Device, dtype: str) -> float | None:
    """Operations per second of one device; None where no peak is stated (CPUs, float32)."""
    if dtype != "bfloat16":
        return None
    kind = device.device_kind.lower()
    return next((peak for name, peak in BF16_PEAKS.items() if name in kind), None)
