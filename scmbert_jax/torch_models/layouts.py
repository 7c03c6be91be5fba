"""The layouts that can be imported and exported: one file and one line each."""

from scmbert_jax.torch_models import scbert, scgpt
from scmbert_jax.torch_models.layout import Layout

LAYOUTS: dict[str, Layout] = {"scbert": scbert.LAYOUT, "scgpt": scgpt.LAYOUT}
