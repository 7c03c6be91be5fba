"""What a file is that cannot be read as it is, by how it begins, and which command makes it readable."""

import gzip
import json
import shlex
import zipfile
import zlib
from collections.abc import Collection
from pathlib import Path

_HDF5 = b"\x89HDF\r\n\x1a\n"
_TAR_AT = 257  # where a tar archive says "ustar"
_R_OBJECT = (b"X\n", b"A\n", b"RDX", b"RDA")
_UNPACKED_BY = {b"BZh": ("bzip2", "bunzip2 -k"), b"\xfd7zXZ\x00": ("xz", "unxz -k"), b"(\xb5/\xfd": ("zstd", "unzstd")}


def described(path: Path) -> str | None:
    """Of a file that is not HDF5: "a compressed HDF5 file; unpack it: gunzip -k cells.h5ad.gz". None: not known."""
    with open(path, "rb") as file:
        start = file.read(512)
    if start[:2] == b"\x1f\x8b":
        return _gzipped(path)
    if start[:4] == b"PK\x03\x04":
        return _zipped(path)
    for magic, (packing, command) in _UNPACKED_BY.items():
        if start.startswith(magic):
            return f"compressed with {packing}; unpack it: {command} {_quoted(path)}"
    if start.startswith(b"version https://git-lfs"):
        return "a pointer to a file in Git LFS; fetch the file: git lfs pull"
    if start.lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return "a web page: the link leads to a page; download the file that stands on it"
    return _by_content(path, start)


def of_other_program(members: Collection[str], path: Path) -> str | None:
    """The same of an HDF5 file with these groups and arrays."""
    if {"matrix", "row_attrs", "col_attrs"} <= set(members):
        rewrite = _in_python("io.read_loom({source}).write_h5ad({target})", path)
        return f"a Loom file; rewrite it (this needs pip install loompy): {rewrite}"
    if "assays" in members and "cell.names" in members:
        return f'an h5Seurat file; rewrite it in R: SeuratDisk::Convert({json.dumps(str(path))}, dest = "h5ad")'
    if {"barcode_idx", "feature_idx"} <= set(members):
        return "the molecules of Cell Ranger; name its filtered_feature_bc_matrix.h5"
    return None


def _gzipped(path: Path) -> str:
    try:
        with gzip.open(path, "rb") as file:
            start = file.read(512)
    except (OSError, EOFError, zlib.error) as error:
        return f"compressed, and damaged ({error}); copy or download it again"
    found = _by_content(path, start)
    if found is not None:
        return found
    what = "a compressed HDF5 file" if start.startswith(_HDF5) else "compressed"
    if path.suffix == ".gz":
        return f"{what}; unpack it: gunzip -k {_quoted(path)}"
    packed = path.with_name(path.name + ".gz")
    return f"{what}; unpack it: mv {_quoted(path)} {_quoted(packed)} && gunzip {_quoted(packed)}"


def _by_content(path: Path, start: bytes) -> str | None:
    """By the first bytes, unpacked where the file is compressed."""
    if start[_TAR_AT : _TAR_AT + 5] == b"ustar":
        return f"a tar archive; unpack it: tar -xf {_quoted(path)}, and name what was in it"
    if start.startswith(_R_OBJECT):
        read = f"x <- readRDS({json.dumps(str(path))})"
        return (
            f'an R object; write it as .h5ad in R: {read}; zellkonverter::writeH5AD(x, "cells.h5ad") (of a Seurat '
            "object: Seurat::as.SingleCellExperiment(x))"
        )
    if start.startswith(b"%%MatrixMarket"):
        return "a Matrix Market file; call it matrix.mtx[.gz], with barcodes.tsv and features.tsv next to it"
    first_line, *more = start.split(b"\n")
    separator = max((b",", b"\t"), key=first_line.count)
    if b"\0" in start or not more or separator not in first_line:
        return None
    delimiter = '","' if separator == b"," else r'"\t"'
    rewrite = _in_python(f"io.read_csv({{source}}, delimiter={delimiter}).write_h5ad({{target}})", path)
    return f"a table of text; where its rows are cells: {rewrite}; where they are genes, .T before .write_h5ad"


def _zipped(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
        return f"a zip archive, and damaged ({error}); copy or download it again"
    if "xl/workbook.xml" in names:
        return "a spreadsheet of Excel; save the sheet of counts as .csv, and name that"
    if {".zgroup", "zarr.json"} & set(names):
        target = path.with_name(path.name.removesuffix(".zip").removesuffix(".zarr") + ".zarr")
        return f"a zipped zarr store; unpack it: unzip {_quoted(path)} -d {_quoted(target)}"
    return f"a zip archive; unpack it: unzip {_quoted(path)}, and name what was in it"


def _in_python(expression: str, path: Path) -> str:
    """A command that rewrites the file beside itself, and nothing that is likely to be there."""
    new = path.with_name(path.name.split(".")[0] + "_rewritten.h5ad")
    source, target = (json.dumps(str(own)) for own in (path, new))
    return f"python -c {shlex.quote('import anndata.io as io; ' + expression.format(source=source, target=target))}"


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))
