"""The limits that diagnoses are held to, each with where it comes from. docs/claims.md tests them.

The two bands of acceptance are the verdict's own (`Policy`); they stand there once.
"""

from __future__ import annotations

PRACTITIONERS = "practitioners' rule, see docs/claims.md"
MEASURED = "measured in this run"
OWN = "quantdraft's own limit: below it lies the noise of a few hundred tokens"
PAYS = "arXiv 2211.17192, corollary 3.9: speculation has to beat the target alone"

# Acceptance per token above which more of it can hardly be what is missing.
HIGH_ALPHA = 0.90
# Share of a round from which drafting, and not verifying, is what makes it long.
MAX_DRAFT_SHARE = 0.50
# Used only where speed was not measured: which k an acceptance per token is good for.
K_BY_ALPHA = ((0.90, "8 or more"), (0.85, "6 to 8"), (0.75, "4 to 6"), (0.60, "3 or 4"))
# A difference of conditional acceptance between two parts of the tokens that is worth a line.
MIN_CONTRAST = 0.03
