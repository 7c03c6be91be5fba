"""Runs the tutorials and stores what they print: `make notebooks`, or with the names of some of them as arguments."""

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

TUTORIALS = Path(__file__).parent / "tutorials"


def merged(outputs: list[nbformat.NotebookNode]) -> list[nbformat.NotebookNode]:
    """What a program printed at once as one output: in how many chunks it came differs from run to run."""
    found: list[nbformat.NotebookNode] = []
    for output in outputs:
        before = found[-1] if found else None
        if before is not None and output.output_type == before.output_type == "stream" and output.name == before.name:
            before.text += output.text
        else:
            found.append(output)
    return found


for path in [TUTORIALS / f"{name}.ipynb" for name in sys.argv[1:]] or sorted(TUTORIALS.glob("*.ipynb")):
    print(path.name, flush=True)
    notebook = nbformat.read(path, as_version=4)
    # Times and versions would change the file whenever it is run.
    NotebookClient(notebook, timeout=600, kernel_name="python3", record_timing=False).execute()
    notebook.metadata.language_info = {"name": "python"}
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = merged(cell.outputs)
    nbformat.write(notebook, path)
