"""How much the property tests try: little and always the same in CI, much and at random with a profile of its own.

``pytest --hypothesis-profile=long`` tries ``LONG`` times as many examples.
"""

from __future__ import annotations

from typing import Any, Final

from hypothesis import HealthCheck, Phase, settings

LONG: Final = 50

_SLOW: Final = (HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large)


def register_profiles() -> None:
    """Make the profiles known, and ``ci`` the default one."""
    # Databases are slow and machines busy: how long an example takes says nothing.
    settings.register_profile("ci", derandomize=True, database=None, deadline=None)
    settings.register_profile("long", max_examples=100 * LONG, database=None, deadline=None, print_blob=True)
    settings.load_profile("ci")


def scaled(examples: int, **others: Any) -> settings:
    """Settings for a test of the database: so many examples in CI, in proportion with other profiles.

    Failures are not made smaller: that takes hundreds of runs more, each against the database.
    """
    profile = settings.get_profile(settings.get_current_profile_name())
    return settings(
        max_examples=max(1, examples * profile.max_examples // 100),
        suppress_health_check=_SLOW,
        phases=(Phase.explicit, Phase.generate),
        **others,
    )
