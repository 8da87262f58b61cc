"""What a mutant is: a name, the promise that it breaks, its edits, and its killers.

The rule: a name begins with the promise (`p3-...` breaks P3), and only files of `kvactor/` are edited.
"""

from pathlib import Path
from typing import Final, NamedTuple

from tests.mutants.edits import Edit, edited

PROMISES: Final = tuple(f"P{number}" for number in range(1, 11))


class Mutant(NamedTuple):
    """An error made on purpose. `why` says what is wrong, and what speaks for it, if anything does.

    `killed_by` has the killers, in the order in which they are tried: tests as pytest takes them, or
    commands, which begin with `python`.
    """

    name: str
    why: str
    edits: tuple[Edit, ...]
    killed_by: tuple[str, ...]

    @property
    def promise(self) -> str:
        """Return the promise that it breaks. Raises `ValueError` unless the name begins with one."""
        number, dash, _ = self.name.partition("-")
        if not dash or number not in [promise.lower() for promise in PROMISES]:
            raise ValueError(f"{self.name} has to begin with one promise of {PROMISES}")
        return number.upper()

    def files(self, root: Path) -> dict[str, str]:
        """Return what the edited files of the tree at `root` contain in this mutant.

        The edits are made one after another, in memory. Raises `Refused` if one has no place.
        """
        texts: dict[str, str] = {}
        for edit in self.edits:
            source = texts[edit.file] if edit.file in texts else (root / edit.file).read_text("utf-8")
            texts[edit.file] = edited(source, edit)
        return texts


def is_command(killer: str) -> bool:
    """Is this a command, and not what pytest is given?"""
    return killer.startswith("python ")
