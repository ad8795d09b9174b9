"""Options as the C library's ``getopt_long()`` reads them, with its messages: for the commands that replace C tools.

argparse costs more than a whole ``lsmem`` and reads options differently, the getopt module lacks the messages.
"""

from __future__ import annotations

import posix

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

__all__ = ["NO", "OPTIONAL", "REQUIRED", "Refused", "Usage", "UsageError"]

NO, REQUIRED, OPTIONAL = 0, 1, 2
"""What an option has to do with an argument."""


class UsageError(Exception):
    """The command line is wrong; the text says how, in the words of the tool that is replaced, '' if that is silent."""

    advice = True
    """Whether the tool points at its help."""


class Refused(UsageError):
    """An option's argument is wrong, or two options don't go together."""

    advice = False


class Usage:
    """Reads a command line.

    Attributes:
        short: ``"abo:"``, as in C.
        long: each long option's argument and the short name that stands for it (the same text if there is none), in the
            order in which the messages list them.
        exclusive: groups of options of which one excludes the others, in order.
        whole: long options that can't be abbreviated, so that they take no abbreviation from others.
        rest: after reading, what were no options.
    """

    def __init__(
        self,
        short: str,
        long: Mapping[str, tuple[int, str]],
        exclusive: Sequence[Sequence[str]] = (),
        whole: frozenset[str] = frozenset(),
    ) -> None:
        self.short = short
        self.long = long
        self.exclusive = exclusive
        self.whole = whole
        self.rest: list[str] = []

    def read(self, arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
        """Give option after option with its argument, '' if there is none; so what stands before an error still counts.

        Raises:
            UsageError: at the first option that is wrong, or excludes one before it.
        """
        seen: list[str | None] = [None] * len(self.exclusive)
        for option, argument in self._options(list(arguments)):
            for index, group in enumerate(self.exclusive):
                if option in group:
                    before = seen[index]
                    if before is not None and before != option:
                        raise Refused(f"options {self._named(before)} and {self._named(option)} cannot be combined")
                    seen[index] = option
            yield option, argument

    def _named(self, short: str) -> str:
        return next((f"--{name}" for name, (_, same) in self.long.items() if same == short), f"-{short}")

    def _options(self, words: list[str]) -> Iterator[tuple[str, str]]:
        strict = b"POSIXLY_CORRECT" in posix.environ
        while words:
            word = words.pop(0)
            if word == "--":
                self.rest += words
                return
            if word[:1] != "-" or word == "-":
                self.rest.append(word)
                if strict:
                    self.rest += words
                    return
            elif word[:2] == "--":
                yield self._long(word, words)
            else:
                yield from self._short(word[1:], words)

    def _short(self, letters: str, words: list[str]) -> Iterator[tuple[str, str]]:
        while letters:
            letter, letters = letters[0], letters[1:]
            at = self.short.find(letter)
            if at < 0 or letter == ":":
                raise UsageError(f"invalid option -- '{letter}'")
            if self.short[at + 1 : at + 2] != ":":
                yield letter, ""
                continue
            if not letters and not words:
                raise UsageError(f"option requires an argument -- '{letter}'")
            yield letter, letters or words.pop(0)
            return

    def _long(self, word: str, words: list[str]) -> tuple[str, str]:
        name, equals, argument = word[2:].partition("=")
        meant = [known for known in self.long if known.startswith(name) and known not in self.whole]
        if name in self.long:
            meant = [name]
        if not meant:
            raise UsageError(f"unrecognized option '{word}'")
        if len(meant) > 1:
            possible = " ".join(f"'--{known}'" for known in meant)
            raise UsageError(f"option '{word}' is ambiguous; possibilities: {possible}")
        kind, same = self.long[meant[0]]
        if equals and kind == NO:
            raise UsageError(f"option '--{meant[0]}' doesn't allow an argument")
        if not equals and kind == REQUIRED:
            if not words:
                raise UsageError(f"option '--{meant[0]}' requires an argument")
            argument = words.pop(0)
        return same, argument
