"""What every kind of step can be asked; the kinds themselves are in `steps`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import msgspec

from guest_tests.scenario.scene import Inner, Scene
from vdev.errors import ConfigError

Ends = Literal["backend", "vm"]
MAX_WITHIN_S = 600.0


@dataclass(frozen=True, slots=True)
class Done:
    """What came of a step: in words, and as a value for later steps."""

    words: str = ""
    value: Any = None


class Kind(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """One kind of step. Its fields are the keys of the file."""

    examples: ClassVar[Mapping[str, str]] = {}
    inner_key: ClassVar[str] = ""  # the field with the steps inside it
    free_keys: ClassVar[tuple[str, ...]] = ()  # fields that may have {{results}}

    @classmethod
    def spelled_out(cls, given: Any) -> Any:
        """What the file says, with the short form written in full."""
        return given

    @classmethod
    def own_key(cls, given: Any, key: str) -> str:
        """How an error calls the key that is `key` of the full form."""
        return key

    def check(self, key: str) -> None:
        """Raises ConfigError for what the shape cannot say."""

    def free(self) -> dict[str, Any]:
        """What may have {{results}} in it, by key."""
        return {name.rstrip("_"): getattr(self, name) for name in self.free_keys}

    def inner(self) -> Sequence[dict[str, Any]]:
        """The steps inside it, as the file has them."""
        return getattr(self, self.inner_key) if self.inner_key else ()

    @property
    def saved_as(self) -> str | None:
        """The name of its result."""
        return None

    @property
    def looks_at(self) -> str | None:
        """The dotted path into results that it looks at."""
        return None

    @property
    def module_file(self) -> str | None:
        """The file its function is in."""
        return None

    def rules_named(self) -> Iterator[tuple[str, str]]:
        """(key, id) of the rules it speaks of."""
        yield from ()

    def rules_added(self) -> Sequence[Mapping[str, Any]]:
        """The rules it injects."""
        return ()

    @property
    def clears_rules(self) -> bool:
        """Whether no rule is left after it."""
        return False

    def words(self, scene: Scene) -> str:
        """What it is about to do. Raises StepFailed."""
        raise NotImplementedError

    async def do(self, scene: Scene, inner: Inner) -> Done:
        """Do it. Raises StepFailed."""
        raise NotImplementedError


def check_within(seconds: float, key: str) -> None:
    """Raises ConfigError for a time-out that is none."""
    if not 0 < seconds <= MAX_WITHIN_S:
        raise ConfigError(key, f"{seconds:g} is not in 0..{MAX_WITHIN_S:g} s", "seconds, such as 30")
