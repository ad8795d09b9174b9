"""The fixture ``explore``: a scene must hold in every execution, or the test fails with the shortest one that was found."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from memhp.explore import Result, Scene

__all__ = ["explore"]


@pytest.fixture
def explore() -> Callable[..., Result]:
    """Explore a scene, with the arguments of :func:`memhp.explore.explore`; the test fails unless it holds, completely."""
    pytest.importorskip("greenlet", reason="the explorer needs greenlet (pip install 'memhp[explore]')")
    from memhp.explore import Promise, Verdict, explore  # noqa: PLC0415 - needs the extra
    from memhp.explore.timeline import timeline  # noqa: PLC0415

    def check(build: Callable[[Scene], object], **options: Any) -> Result:
        result = explore(build, **options)
        sampled = result.promise is not Promise.COMPLETE and not result.limit
        if result.verdict is Verdict.FAILS or (result.verdict is Verdict.UNDECIDED and not sampled):
            text = [str(result), *(timeline(finding) for finding in result.findings)]
            text += [f"replay(..., {finding.schedule!r})" for finding in result.findings if finding.schedule]
            pytest.fail("\n\n".join(text), pytrace=False)
        return result

    return check
