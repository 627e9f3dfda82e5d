"""Online EWC (Schwarz et al. 2018): earlier tasks fade."""

from typing import Any, ClassVar

from lifelong.methods.ewc import EWC


class OnlineEWC(EWC):
    """EWC whose earlier tasks keep the share γ of their weight at each consolidation.

    Args:
        ewc_lambda: λ ≥ 0.
        decay: γ in [0, 1]; 1 is EWC.
        **settings: what ``EWC`` takes.

    Source:
        Schwarz et al. 2018, "Progress & Compress", eq. 9.

    Example:
        >>> OnlineEWC(ewc_lambda=1e3).decay
        0.95
    """

    title: ClassVar[str] = "online EWC"

    def __init__(
        self, ewc_lambda: float | None = None, *, decay: float = 0.95, **settings: Any
    ) -> None:
        super().__init__(ewc_lambda, decay=decay, **settings)
