"""What is seen of an explanation: features by types, and probabilities as features are deleted."""

import matplotlib
import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from scmbert_jax.evaluation.report.figures import COLOURS, INK, MARKERS, RC, svg_element
from scmbert_jax.interpretation.deletion import NUMBERS
from scmbert_jax.interpretation.explain import Explanation

_OF_EACH_TYPE = 4
_MOST_FEATURES = 60


def heat_map(found: Explanation) -> str:
    """Mean attributions of the first features of each type (rows) by type (columns), by the first method."""
    means = found.means[found.methods[0]]  # [T, F]
    best = [np.argsort(-row, kind="stable")[:_OF_EACH_TYPE] for row in means]
    chosen = list(dict.fromkeys(np.concatenate(best).tolist()))[:_MOST_FEATURES]
    shown = means[:, chosen].T  # [features, T]
    size = float(np.abs(shown).max()) or 1.0
    # Colours that fade into the page, be it light or dark.
    colours = np.where((shown > 0)[..., None], to_rgb(COLOURS[0]), to_rgb(COLOURS[3]))
    pixels = np.concatenate([colours, (np.abs(shown) / size)[..., None]], axis=2)
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(2.2 + 0.5 * len(found.types), 1.8 + 0.2 * len(chosen)), layout="constrained")
        axes = figure.add_subplot()
        axes.imshow(pixels, interpolation="nearest", aspect="auto")
        axes.set(xticks=range(len(found.types)), yticks=range(len(chosen)))
        axes.set_xticklabels(found.types, rotation=45, ha="right", fontsize=9)
        axes.set_yticklabels(found.features["name"].to_numpy()[chosen].tolist(), fontsize=8)
        axes.tick_params(length=0)
        axes.set_title(f"blue: for the type; orange: against it; strongest {size:.3g}", fontsize=9)
        first = "; ".join(
            f"{name}: {found.features['name'].iloc[int(row.argmax())]}"
            for name, row in zip(found.types, means, strict=True)
        )
        return svg_element(figure, f"Mean attributions of {len(chosen)} features. Highest of each type: {first}")


def deletion_figure(found: Explanation) -> str:
    """The type's probability against features deleted, for each ranking."""
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(6, 4.6), layout="constrained")
        axes = figure.add_subplot()
        places = np.arange(len(NUMBERS))
        for number, ranking in enumerate(found.curves.probabilities):
            colour = COLOURS[number % len(COLOURS)]
            mean, low, high = np.array(found.curves.curve(ranking)).T
            axes.plot(places, mean, MARKERS[number % 4], ls="-", color=colour, ms=4, lw=1.3, label=ranking)
            axes.fill_between(places, low, high, color=colour, alpha=0.15, lw=0)
        axes.set(xlabel="features set to 0", ylabel="probability of the type", ylim=(0, 1.02), xticks=places)
        axes.set_xticklabels(list(map(str, NUMBERS)))
        axes.grid(alpha=0.2, color=INK, lw=0.6)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False, fontsize=9)
        said = "; ".join(
            f"{ranking} {own[:, 0].mean():.2f} to {own[:, -1].mean():.2f}"
            for ranking, own in found.curves.probabilities.items()
        )
        return svg_element(figure, f"Probability of the type as features are deleted. {said}")
