"""Cells of one group, such as a technical batch, side by side in the order, where chance would bring too few together.

An objective that compares cells of a group with each other learns nothing of a cell that is alone in its batch. Of a
group that makes up 1% of the cells, a batch of 64 holds one or none. So the cells of such a group that a window holds
come in runs, each run where the window's permutation put its first cell. Which cells a window holds, and with it what
is read, stays as it is; so does everything else that holds of the order.
"""

import numpy as np

# So many cells of a group in a batch are enough. Groups of which chance brings as many are left where they are: runs of
# them would only make the cells of a batch more alike.
ENOUGH = 16


def too_rare(groups: np.ndarray, draws_per_batch: float) -> np.ndarray:
    """`groups`, int32 [n], of the cells of a source; -1 for cells that need no help, or whose group is not known (-1).

    `draws_per_batch`: cells of the source in a batch.
    """
    sizes = np.bincount(groups[groups >= 0], minlength=1)
    return np.where(sizes[groups] * (draws_per_batch / len(groups)) < ENOUGH, groups, -1)


def side_by_side(groups: np.ndarray, run: int) -> np.ndarray:
    """int64 [n]: the places of a sequence reordered so that cells of one group come in runs of up to `run`.

    Args:
      groups: int [n], in the sequence; cells of -1 stay alone.
    """
    order = np.argsort(groups, kind="stable")
    of_order = groups[order]
    first = np.flatnonzero(np.diff(of_order, prepend=-2))  # of each group, in `order`
    rank = np.arange(len(groups)) - np.repeat(first, np.diff(first, append=len(groups)))
    in_run = np.where(of_order >= 0, rank % run, 0)
    leads_at = np.empty(len(groups), np.int64)
    leads_at[order] = order[np.arange(len(groups)) - in_run]  # where the first cell of the run stands
    return np.argsort(leads_at, kind="stable")


def fraction_with_another(groups: np.ndarray) -> float:
    """Of the cells of a batch, int32 [B]: the fraction that is not alone in its group; the unknown group -1 is none."""
    known = groups[groups >= 0]
    return float((np.bincount(known, minlength=1)[known] > 1).sum() / len(groups))
