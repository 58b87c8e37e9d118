"""Open a draft head: its family is known, and what it holds can be what its config says."""

from __future__ import annotations

from quantdraft.checkpoints.checkpoint import Checkpoint
from quantdraft.checkpoints.heads.head import DraftHead, draft_head
from quantdraft.checkpoints.heads.maps import map_problems
from quantdraft.checkpoints.heads.sizes import size_problems
from quantdraft.errors import CheckpointError

MAX_SHOWN = 3


def open_head(checkpoint: Checkpoint) -> DraftHead | None:
    """Return the checkpoint as a draft head, looked through; None for a stand-alone model.

    Raises CheckpointError for a tensor that is missing or of another shape than the config gives,
    and for a map of ids that leads elsewhere: engines load most of them, and accept nothing.
    """
    head = draft_head(checkpoint)
    if head is None:
        return None
    problems = [*size_problems(head), *map_problems(head)]
    if problems:
        more = len(problems) - MAX_SHOWN
        shown = "; ".join(problems[:MAX_SHOWN]) + (f"; and {more} more" if more > 0 else "")
        raise CheckpointError(
            f"'{checkpoint.path}' is a draft head ({head.family.title}), and cannot be served as "
            f"it is: {shown}. Download it again, or have its publisher mend it."
        )
    return head
