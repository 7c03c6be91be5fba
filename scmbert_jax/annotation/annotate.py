"""`scmbert_jax.annotate`: the types of the cells of an AnnData, in one call."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from scmbert_jax.annotation.annotator import Annotator, is_annotator, load_annotator
from scmbert_jax.annotation.fit import FitOptions, fit
from scmbert_jax.annotation.predict import predict
from scmbert_jax.annotation.representation import Reading
from scmbert_jax.annotation.write_annotation import add_to
from scmbert_jax.errors import ConfigError, InputError
from scmbert_jax.plain_text import say
from scmbert_jax.pretrained import PretrainedModel, load_model
from scmbert_jax.tasks.model import Model
from scmbert_jax.tasks.progress_bar import progress_of


def annotate(
    adata: Any,
    model: Any = None,
    *,
    reference: Any = None,
    label_key: str | None = None,
    donor_key: str | None = None,
    method: str | None = None,
    options: FitOptions | None = None,
    majority_voting: str | None = None,
    copy: bool = False,
    allow_low_coverage: bool = False,
    organism: str | None = None,
    assembly: str | None = None,
    num_tokens: int | None = None,
    batch_size: int = 64,
    progress: bool | Callable[[int, int], None] = False,
) -> Any:
    """Adds the type of every cell to an AnnData or MuData, in place; `docs/annotate.md` says what each column means.

        scmbert_jax.annotate(adata, "my_annotator")
        scmbert_jax.annotate(adata, "my_model", reference=labelled, label_key="cell_type")
        scmbert_jax.annotate(adata, reference=labelled, label_key="cell_type")  # principal components, no model

    Args:
      adata: AnnData or MuData with raw counts.
      model: an annotator (its folder, or what `fit_annotator` gave), or, with `reference`, a model (its folder, or what
        `load` gave); None: principal components of the reference.
      reference: labelled cells that an annotator is fitted to: AnnData, MuData or a file.
      label_key, donor_key, method: as of `FitOptions`; method: by default "probe", of no model "pca".
      options: other options of the fit.
      majority_voting: column of obs with a clustering, whose clusters get one label each.
      copy: give an annotated copy instead.
      allow_low_coverage: annotate cells of which few features were measured, too.
      organism, assembly, num_tokens, batch_size: as of `Model.embed`.
      progress: True: a bar; or a function of (cells done, cells in all).

    Returns None, or with `copy` the annotated copy.

    Raises:
      InputError: counts or labels that cannot be used; the message says where and why.
      ConfigError: options that do not go together.
    """
    if not (hasattr(adata, "obs") and hasattr(adata, "obsm") and hasattr(adata, "uns")):
        raise InputError(
            f"a {type(adata).__name__} cannot be annotated in place; give an AnnData or MuData, or for a file use "
            "scmbert annotate predict."
        )
    reading = Reading(organism, assembly, allow_low_coverage, num_tokens, batch_size)
    if reference is None:
        if options is not None or label_key or donor_key or method:
            raise ConfigError("label_key, donor_key, method and options are of a fit; give its cells as reference=.")
        annotator = _annotator(model)
    else:
        annotator = fit_annotator(
            reference,
            model,
            label_key=label_key,
            donor_key=donor_key,
            method=method,
            options=options,
            reading=reading._replace(progress=progress_of(progress, "embed reference")),
        )
    adata = adata.copy() if copy else adata
    progress_bar = progress_of(progress, "annotate")
    found = predict(
        annotator, adata, reading=reading._replace(progress=progress_bar), majority_voting=majority_voting, say=say
    )
    add_to(adata, found)
    return adata if copy else None


def fit_annotator(
    reference: Any,
    model: Any = None,
    *,
    label_key: str | None = None,
    donor_key: str | None = None,
    method: str | None = None,
    options: FitOptions | None = None,
    reading: Reading | None = None,
) -> Annotator:
    """Fits an annotator to labelled cells; `annotator.save(folder)` keeps it. Arguments as of `annotate`."""
    known = _model(model)
    options = options or FitOptions(method="pca" if known is None else "probe")
    given: dict[str, Any] = {"label_key": label_key, "donor_key": donor_key, "method": method}
    options = replace(options, **{name: value for name, value in given.items() if value is not None})
    return fit(known, reference, options, reading=reading, say=say)


def _annotator(given: Any) -> Annotator:
    if isinstance(given, Annotator):
        return given
    if given is None or isinstance(given, (Model, PretrainedModel)) or not is_annotator(given):
        found = given if isinstance(given, (str, Path)) else type(given).__name__
        raise ConfigError(
            f"{found}: no annotator; a model needs labelled cells to be one: reference=..., label_key=... (scmbert "
            "annotate fit)."
        )
    return load_annotator(given)


def _model(given: Any) -> PretrainedModel | None:
    if isinstance(given, Model):
        return given.pretrained
    if given is None or isinstance(given, PretrainedModel):
        return given
    if is_annotator(given):
        raise ConfigError(f"{given}: is an annotator already; leave reference= out, or give a model folder.")
    return load_model(Path(given))
