"""A limit on money and tokens, held by setting aside the most a call can cost before it is sent.

What was spent plus what is set aside never passes a limit; when a call is settled its reserve is
released and its true cost spent. Pure bookkeeping: no threads, no files, no network.

    purse.fits(0.01, 900) and purse.hold(0.01, 900)
"""


class Purse:
    """What was spent and what is set aside."""

    def __init__(
        self,
        *,
        price: tuple[float, float] | None,
        budget_usd: float | None,
        budget_tokens: int | None,
        usd: float,
        tokens: int,
    ) -> None:
        self.price = price
        self.budget_usd = budget_usd
        self.budget_tokens = budget_tokens
        self.usd = usd
        self.tokens = tokens
        self.held_usd = 0.0
        self.held_tokens = 0
        self.calls = 0

    def cost(self, prompt: int, completion: int) -> float | None:
        """US dollars for a call; None without a price."""
        if self.price is None:
            return None
        return (prompt * self.price[0] + completion * self.price[1]) / 1e6

    def fits(self, usd: float | None, tokens: int) -> bool:
        """Whether one more call of at most this much stays inside the limits."""
        if self.budget_usd is not None and (
            self.usd + self.held_usd + (usd or 0.0) > self.budget_usd
        ):
            return False
        return self.budget_tokens is None or (
            self.tokens + self.held_tokens + tokens <= self.budget_tokens
        )

    def hold(self, usd: float | None, tokens: int) -> None:
        """Sets aside the most that a call can cost."""
        self.held_usd += usd or 0.0
        self.held_tokens += tokens
        self.calls += 1

    def release(self, usd: float | None, tokens: int) -> None:
        """Gives back what `hold` set aside."""
        self.calls -= 1
        self.held_tokens -= tokens
        # Sums of floats drift; with nothing under way the truth is known.
        self.held_usd = self.held_usd - (usd or 0.0) if self.calls else 0.0

    def spend(self, usd: float | None, tokens: int) -> None:
        """Counts what a call did cost, or may have cost."""
        self.usd += usd or 0.0
        self.tokens += tokens

    def describe(self) -> str:
        """What was spent of each limit, for a message."""
        spent = []
        if self.budget_usd is not None:
            spent.append(f"${self.usd:.4f} of ${self.budget_usd:.4f}")
        if self.budget_tokens is not None:
            spent.append(f"{self.tokens:,} of {self.budget_tokens:,} tokens")
        return " and ".join(spent)
