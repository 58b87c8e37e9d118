"""What came of a choice: the record on disk."""

from __future__ import annotations

from dataclasses import dataclass, field

from quantdraft.workflows.select.ranking import Basis, Ranked

SELECTION_SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class Selection:
    """Rows fastest first. A draft that cannot be used has its reason in `refused`, by its name."""

    schema_version: int
    target: str
    traffic: str
    acceptance_rule: str
    num_prompts: int
    common_k: int  # of the acceptance rates
    basis: Basis  # what the order goes by
    basis_reason: str  # why not by measured speed, or ""
    rows: tuple[Ranked, ...]
    refused: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)  # draft + recipe -> why
    # What `quantdraft check` warns of, by the draft's name.
    warnings: dict[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def recommended(self) -> Ranked:
        """The fastest draft as it is, or recipe with a go: a recipe has to earn its place.

        In an order by prediction no recipe can have a go, so it is the first row.
        """
        if self.basis == "predicted":
            return self.rows[0]
        earned = [
            r for r in self.rows if r.recipe == "none" or (r.decision == "go" and not r.alarms)
        ]
        return earned[0] if earned else self.rows[0]

    @property
    def passed_over(self) -> tuple[Ranked, ...]:
        """Rows that are faster than the recommended one by the estimate, and have no go."""
        return self.rows[: self.rows.index(self.recommended)]

    @property
    def undecided(self) -> tuple[Ranked, ...]:
        """Rows that the intervals cannot tell from the first."""
        return tuple(row for row in self.rows[1:] if not row.is_slower)
