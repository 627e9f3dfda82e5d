"""What is known at test about the task that an image belongs to (van de Ven and Tolias 2019)."""

from lifelong.errors import LifelongError

SCENARIOS = ("domain", "task", "class")
BUILT = ("domain",)


def check_scenario(scenario: object, key: str = "scenario") -> None:
    """Refuse a scenario that is unknown or not built yet.

    Args:
        scenario: "domain" (one set of classes, the images change), "task" (each task has classes of
            its own and is named at test) or "class" (it is not named).
        key: What the user gave it as.

    Raises:
        LifelongError: It is not one that can be run.

    Example:
        >>> check_scenario("domain")
    """
    if scenario not in SCENARIOS:
        raise LifelongError(
            f"{key}={scenario} is not known; the scenarios are {', '.join(SCENARIOS)}: type "
            "scenario=domain"
        )
    if scenario not in BUILT:
        raise LifelongError(
            f"{key}={scenario} is not built yet, domain is the one that is: type scenario=domain"
        )
